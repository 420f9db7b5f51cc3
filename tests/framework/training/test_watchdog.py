"""A process that makes no progress leaves its stacks and goes."""

import signal
import subprocess
import sys
import textwrap

import pytest

from framework.training.callbacks import Watchdog

HANGS = textwrap.dedent("""
    import sys, ctypes, threading, time
    from pathlib import Path
    from framework.training.callbacks.watchdog import Watchdog

    def hangs_here(kind):
        if kind == "python":
            threading.Event().wait()
        ctypes.PyDLL(None).sleep(1000)  # PyDLL keeps the interpreter's lock

    watchdog = Watchdog(Path(sys.argv[1]), 3, seconds=0.4)
    for step in range(4):  # longer than the limit in all, but with signs of life
        time.sleep(0.2)
        watchdog.end(step)
    hangs_here(sys.argv[2])
""")


@pytest.mark.parametrize("kind", ["python", "c_with_the_interpreter_lock"])
def test_stacks_are_written_and_the_process_ends(tmp_path, kind):
    done = subprocess.run([sys.executable, "-c", HANGS, str(tmp_path), kind], timeout=60)
    assert done.returncode == -signal.SIGALRM
    text = (tmp_path / "stacks" / "rank_3.txt").read_text()
    assert "hangs_here" in text and "Timeout" in text


def test_closed_in_time_it_leaves_nothing(tmp_path):
    watchdog = Watchdog(tmp_path, 0, seconds=60)
    watchdog.beat()
    watchdog.close()
    assert not list(tmp_path.iterdir())
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)
