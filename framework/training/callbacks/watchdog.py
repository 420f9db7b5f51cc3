"""Ends a rank that makes no progress, leaving word of where it stood."""

import contextlib
import faulthandler
import signal
from pathlib import Path

from framework.training.callbacks.base import Callback

SECONDS_FOR_OTHERS = 10.0


class Watchdog(Callback):
    """When no step ends for `seconds`, writes all stacks to RUN/stacks/rank_R.txt and ends the process by SIGALRM.

    Both the dump and the end come from outside Python's interpreter, so a thread that hangs with the interpreter lock
    held stops neither. The end follows the dump a little later, so that every rank has written before one of them goes
    and the others fail for that.
    """

    def __init__(self, folder: Path, rank: int, seconds: float) -> None:
        self._seconds = seconds
        self._path = folder / "stacks" / f"rank_{rank}.txt"
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self._path.open("w")
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        self.beat()

    def end(self, step: int) -> None:
        self.beat()

    def beat(self) -> None:
        faulthandler.dump_traceback_later(self._seconds, file=self._file)
        signal.setitimer(signal.ITIMER_REAL, self._seconds + min(SECONDS_FOR_OTHERS, self._seconds))

    def close(self) -> None:
        faulthandler.cancel_dump_traceback_later()
        signal.setitimer(signal.ITIMER_REAL, 0)
        self._file.close()
        if self._path.stat().st_size == 0:
            self._path.unlink()
            with contextlib.suppress(OSError):  # another rank's file is still there
                self._path.parent.rmdir()
