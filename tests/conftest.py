"""What all tests share."""

import logging
import os
from collections.abc import Iterator

import pytest

# Before torch is imported: tests are many small tensors, and several processes share the machine.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Before triton is imported: kernels run in its interpreter where there is no GPU.
if not os.path.exists("/dev/nvidia0"):
    os.environ.setdefault("TRITON_INTERPRET", "1")


@pytest.fixture(scope="session")
def ranks() -> Iterator["RankPool"]:  # noqa: F821
    """Live gloo ranks: `ranks.run(4, function, *args)` calls a top-level function on 4 of them, within milliseconds."""
    from parallel import RankPool

    pool = RankPool()
    yield pool
    pool.close()


@pytest.fixture(autouse=True)
def quiet_loggers() -> None:
    """Runs within this process send the project's lines somewhere, and leave it so: every test starts anew."""
    for name in ("framework", "parallel", "kernels"):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [], True
        logger.setLevel(logging.NOTSET)


@pytest.fixture
def upmix(capsys, monkeypatch) -> "Callable[..., tuple[int, str, str]]":  # noqa: F821
    """Gives the command line words in this process: (exit code, standard output, standard error)."""
    from framework.cli import main

    def give(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["upmix", *map(str, words)])
        with pytest.raises(SystemExit) as end:
            main()
        captured = capsys.readouterr()
        return end.value.code or 0, captured.out, captured.err

    return give
