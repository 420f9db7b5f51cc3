"""Where data lives, and the lock of who makes it."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from framework.files import writable


def data_root() -> Path:
    """The folder of prepared data: `$UPMIX_DATA`, or `data` under the working directory."""
    return Path(os.environ.get("UPMIX_DATA") or "data")


@contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """Hold the lock that guards `path`; it dies with its holder, so a killed process never blocks the next one.

    A block that fails takes the lock's file away. Raises UserError where nothing can be written beside `path`.
    """
    lock = path.parent / f".{path.name}.lock"
    with writable(lock, "a folder for data that may be written ($UPMIX_DATA; without, data/ here)"):
        with _locked(lock):
            try:
                yield
            except BaseException:
                lock.unlink(missing_ok=True)
                raise


def _locked(path: Path) -> IO[str]:
    """The lock's file, open and locked, which is still the one under its name: a holder that failed removed its own."""
    while True:
        file = open(path, "w")
        fcntl.flock(file, fcntl.LOCK_EX)
        if path.exists() and path.stat().st_ino == os.fstat(file.fileno()).st_ino:
            return file
        file.close()
