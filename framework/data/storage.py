"""Files that appear whole or not at all: locks, atomic folders, and where data lives."""

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from framework.files import force_to_disk, writable


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


@contextmanager
def atomic_folder(final: Path) -> Iterator[Path]:
    """A folder to fill, which gets its final name when everything in it is on disk.

    What an earlier, killed attempt left under the temporary name is cleared first; the caller holds `exclusive(final)`.
    """
    partial = final.parent / f".{final.name}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        for path in [*partial.iterdir(), partial]:
            force_to_disk(path)
        partial.rename(final)
        force_to_disk(final.parent)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
