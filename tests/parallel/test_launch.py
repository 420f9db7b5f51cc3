"""Starting ranks: fresh processes that join one world, carry exit codes, and die with whoever started them."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from parallel.launcher import _first_failure

ROOT = Path(__file__).resolve().parents[2]
LAUNCH = "import sys; from parallel import launch; sys.exit(launch([sys.executable, *sys.argv[2:]], int(sys.argv[1])))"
JOIN = """
    import os, signal, sys, time
    import torch, torch.distributed as dist
    from parallel import choose_device, find_place, join
    place = find_place()
    device = choose_device(place)
    with join(place, device):
        total = torch.tensor(place.rank + 1.0, device=device)
        dist.all_reduce(total)
"""


@pytest.fixture
def script(tmp_path):
    """Writes what a rank does: either joins first, with `total` the sum of ranks plus one, or stands alone."""

    def write(body: str, joined: bool = True) -> str:
        path = tmp_path / "rank.py"
        body = textwrap.dedent(body)
        path.write_text(textwrap.dedent(JOIN) + textwrap.indent(body, "    ") if joined else body)
        return str(path)

    return write


def start(num_ranks: int, script: str, **options) -> subprocess.Popen:
    environment = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE", "OMP_NUM_THREADS")}
    environment["PYTHONPATH"] = str(ROOT)
    return subprocess.Popen([sys.executable, "-c", LAUNCH, str(num_ranks), script], env=environment, text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options)


def run(num_ranks: int, script: str) -> subprocess.CompletedProcess:
    process = start(num_ranks, script)
    out, err = process.communicate(timeout=60)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def wait_for(condition, seconds: float = 30.0):
    deadline = time.monotonic() + seconds
    while not (answer := condition()):
        assert time.monotonic() < deadline, "it did not come in time"
        time.sleep(0.02)
    return answer


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def pids(folder: Path, num_ranks: int) -> list[int]:
    files = [folder / f"pid{rank}" for rank in range(num_ranks)]
    wait_for(lambda: all(file.exists() and file.read_text() for file in files))
    return [int(file.read_text()) for file in files]


def test_ranks_join_and_only_rank_0_speaks(script):
    result = run(2, script("print(f'{place} {total.item()} {dist.get_backend()}')"))
    assert result.returncode == 0, result.stderr
    assert result.stdout == "Place(rank=0, size=2, local_rank=0, local_size=2, one_gpu=False) 3.0 gloo\n"


def test_the_rank_that_raised_is_the_one_told_and_ends_all(script):
    result = run(2, script("""
        if place.rank == 1: raise KeyError('the culprit')
        dist.all_reduce(total)
    """))
    assert result.returncode == 1
    assert "KeyError: 'the culprit'" in result.stderr
    assert result.stderr.endswith("rank 1 failed first, with exit code 1\n")


def test_a_rank_that_dies_of_a_signal_is_the_one_told(script):
    result = run(2, script("""
        if place.rank == 1: os.kill(os.getpid(), signal.SIGKILL)
        dist.all_reduce(total)
    """))
    assert (result.returncode, result.stderr) == (137, "rank 1 failed first, killed by SIGKILL\n")


def test_what_rank_0_raised_is_shown_where_it_is_the_cause(script):
    result = run(2, script("""
        if place.rank == 0: raise KeyError('the culprit')
        dist.all_reduce(total)
    """))
    assert result.returncode == 1
    assert result.stderr.count("KeyError: 'the culprit'") == 1 and result.stderr.count("Traceback") == 1
    assert result.stderr.endswith("rank 0 failed first, with exit code 1\n")


def test_a_rank_that_hangs_on_is_ended_when_another_fails(script):
    begun = time.monotonic()
    result = run(2, script("""
        import os, sys, time
        sys.exit(3) if os.environ["RANK"] == "0" else time.sleep(1000)
    """, joined=False))
    assert result.returncode == 3
    assert time.monotonic() - begun < 15


def test_a_users_mistake_is_told_once_with_its_code(script):
    result = run(2, script("import sys; print('one line', file=sys.stderr); sys.exit(2)", joined=False))
    assert (result.returncode, result.stderr) == (2, "one line\n")


WAIT_FOR_SIGNAL = """
    import os, signal, sys, time
    from pathlib import Path
    folder, rank = Path(__file__).parent, os.environ["RANK"]
    signal.signal(signal.SIGINT, lambda *_: sys.exit(130))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    signal.signal(signal.SIGUSR1, lambda *_: (folder / f"usr{rank}").touch())
    signal.pthread_sigmask(signal.SIG_UNBLOCK, signal.valid_signals())
    (folder / f"pid{rank}").write_text(str(os.getpid()))
    while True: time.sleep(0.05)
"""


@pytest.mark.parametrize("number, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_reach_every_rank_and_their_code_comes_back(script, tmp_path, number, code):
    process = start(2, script(WAIT_FOR_SIGNAL, joined=False))
    ranks = pids(tmp_path, 2)
    process.send_signal(signal.SIGUSR1)
    wait_for(lambda: (tmp_path / "usr0").exists() and (tmp_path / "usr1").exists())
    process.send_signal(number)
    _, err = process.communicate(timeout=20)
    assert (process.returncode, err) == (code, "")
    assert not any(map(alive, ranks))


def test_a_signal_waits_for_the_handler_of_a_rank(script, tmp_path):
    process = start(2, script("""
        import os, signal, sys, time
        from pathlib import Path
        (Path(__file__).parent / f"pid{os.environ['RANK']}").write_text(str(os.getpid()))
        while signal.SIGUSR1 not in signal.sigpending(): time.sleep(0.02)
        signal.signal(signal.SIGUSR1, lambda *_: sys.exit(3))
        signal.pthread_sigmask(signal.SIG_UNBLOCK, signal.valid_signals())
    """, joined=False))
    pids(tmp_path, 2)
    process.send_signal(signal.SIGUSR1)
    process.communicate(timeout=20)
    assert process.returncode == 3


STOPPED_BETWEEN = """
import os, signal, sys
from parallel import launcher
start = launcher._start
def signalled(command, rank, *others):
    if rank == 1: os.kill(os.getpid(), signal.SIGUSR1)
    started = start(command, rank, *others)
    print(started.process.pid)
    return started
launcher._start = signalled
sys.exit(launcher.launch([sys.executable, "-c", "import time; time.sleep(1000)"], 3))
"""


def test_a_signal_before_all_ranks_are_started_ends_those_that_are():
    result = subprocess.run([sys.executable, "-c", STOPPED_BETWEEN], env=os.environ | {"PYTHONPATH": str(ROOT)},
                            capture_output=True, text=True, timeout=20)
    assert result.returncode == 138
    assert result.stderr == "stopped by SIGUSR1 before all ranks were started\n"
    assert len(started := list(map(int, result.stdout.split()))) == 2 and not any(map(alive, started))


def test_a_terminal_s_ctrl_c_reaches_the_starter_alone(script, tmp_path):
    """A terminal interrupts its whole foreground group: ranks within it would get every Ctrl-C twice."""
    process = start(2, script(WAIT_FOR_SIGNAL, joined=False), start_new_session=True)
    ranks = pids(tmp_path, 2)
    assert all(os.getpgid(rank) != os.getpgid(process.pid) for rank in ranks)
    os.killpg(process.pid, signal.SIGINT)
    process.communicate(timeout=20)
    assert process.returncode == 130


@pytest.mark.parametrize("codes, reported, first", [
    ([0, 0], b"", None),
    ([1, 1], b"1\n0\n", 1),  # both raised, rank 1 before rank 0
    ([1, -9], b"0\n", 1),  # rank 1 was killed, which rank 0 then noticed
    ([None, 1], b"0\n1\n", 0),  # rank 0 raised first and is still leaving
    ([0, 3], b"0\n", 1),  # rank 0 left its world by an exit that is no failure
    ([0, 3, 4], b"", 1),
])
def test_which_of_several_failures_is_the_cause(codes, reported, first):
    assert _first_failure(codes, reported) == first


def test_a_second_interrupt_ends_ranks_that_will_not_leave(script, tmp_path):
    process = start(2, script("""
        import os, signal, time
        from pathlib import Path
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, signal.valid_signals())
        (Path(__file__).parent / f"pid{os.environ['RANK']}").write_text(str(os.getpid()))
        while True: time.sleep(1)
    """, joined=False))
    ranks = pids(tmp_path, 2)
    process.send_signal(signal.SIGINT)
    time.sleep(0.1)
    assert all(map(alive, ranks))
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=20)
    assert process.returncode == 137
    assert not any(map(alive, ranks))


def test_ranks_die_within_a_second_of_a_killed_parent(script, tmp_path):
    process = start(2, script("""
        from pathlib import Path
        (Path(__file__).parent / f"pid{place.rank}").write_text(str(os.getpid()))
        time.sleep(1000)
    """))
    ranks = pids(tmp_path, 2)
    process.kill()
    process.wait()
    wait_for(lambda: not any(map(alive, ranks)), seconds=1.0)


def test_a_rank_whose_parent_died_before_it_could_watch_leaves(tmp_path):
    """The kernel is told after the fork; a parent that dies in between must not leave its child behind."""
    probe = textwrap.dedent("""
        import os, sys
        from parallel.launcher import die_with
        print("about to", flush=True)
        die_with(os.getppid() + 1)
        print("still here")
    """)
    result = subprocess.run([sys.executable, "-c", probe], env=os.environ | {"PYTHONPATH": str(ROOT)},
                            capture_output=True, text=True)
    assert (result.returncode, result.stdout, result.stderr) == (1, "about to\n", "")


def test_starting_imports_no_torch():
    probe = "import sys; from parallel import launch; print('torch' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", probe], env=os.environ | {"PYTHONPATH": str(ROOT)},
                            capture_output=True, text=True)
    assert result.stdout == "False\n", result.stderr
