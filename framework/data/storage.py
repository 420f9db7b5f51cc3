"""Files that appear whole or not at all: locks, atomic folders, and where data lives."""

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from framework.files import force_to_disk


def data_root() -> Path:
    """The folder of prepared data: `$UPMIX_DATA`, or `data` under the working directory."""
    return Path(os.environ.get("UPMIX_DATA") or "data")


@contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """Hold the lock that guards `path`; it dies with its holder, so a killed process never blocks the next one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path.parent / f".{path.name}.lock", "w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


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
