"""A run folder that is whole or not there."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from framework.errors import UserError
from framework.files import force_to_disk
from framework.training.lock import lock_folder


def refuse_existing(path: Path) -> None:
    """Raise UserError where there is something under a new run's name, or no folder can be above it."""
    if path.exists() or path.is_symlink():
        raise UserError(f"{path}: the run folder exists; allowed: another name")
    above = next(parent for parent in path.absolute().parents if parent.exists())
    if not above.is_dir():
        raise UserError(f"{path}: {above} is no folder; allowed: another --runs-dir")


@contextmanager
def new_run_folder(final: Path) -> Iterator[Path]:
    """A folder to fill, which gets the run's name when the block ends well; on rank 0 alone.

    It is locked, as the run's folder is then. If the block fails the folder goes; what a killed attempt left under the
    hidden name is cleared by the next one. Raises UserError where the name is taken, where another process is making
    it, or where nothing can be written.
    """
    refuse_existing(final)
    partial = final.with_name(f".{final.name}.partial")
    try:
        partial.mkdir(parents=True, exist_ok=True)
        lock = lock_folder(partial)
    except OSError as error:
        raise UserError(f"{final}: cannot be written: {error.strerror}; allowed: another --runs-dir") from error
    done = False
    with lock:
        try:
            refuse_existing(final)
            _clear(partial)
            yield partial
            for path in [*partial.iterdir(), partial]:
                force_to_disk(path)
            refuse_existing(final)
            partial.rename(final)
            done = True
            force_to_disk(final.parent)
        finally:
            if not done:
                shutil.rmtree(partial, ignore_errors=True)


def _clear(folder: Path) -> None:
    """Everything but the lock that is held."""
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name != ".lock":
            path.unlink()
