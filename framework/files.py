"""Files and folders that are whole or not there, whenever the process dies."""

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from itertools import takewhile
from pathlib import Path

from framework.errors import UserError

LONGEST_NAME = 200  # bytes; file systems take 255, and names get prefixes and suffixes here


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write under a temporary name, force to disk, rename: readers see the old content or the new."""
    temporary = _temporary(path)
    try:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)
        force_to_disk(temporary)
        temporary.rename(path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise
    force_to_disk(path.parent)


@contextmanager
def atomic_folder(final: Path) -> Iterator[Path]:
    """A folder to fill, which gets its final name when everything in it is on disk.

    What an earlier, killed attempt left under the temporary name is cleared first, and what the block leaves if it
    fails, with the folders above it that were made for it. One process at a time may make a folder.
    """
    partial = final.parent / f".{final.name}.partial"
    made = list(takewhile(lambda folder: not folder.exists(), partial.parents))
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        for path in [*partial.iterdir(), partial]:
            force_to_disk(path)
        partial.rename(final)
        force_to_disk(final.parent)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        _remove_empty(made)
        raise


def new_file(path: Path, option: str) -> AbstractContextManager[None]:
    """The block that writes a file, see `writable`. Raises UserError before it for one that is there."""
    if path.exists():
        raise UserError(f"{option} {path}: is there already; allowed: a new file")
    return writable(path, f"{option} a file that may be written")


@contextmanager
def writable(path: Path, allowed: str) -> Iterator[None]:
    """Make the folder of a file that the block is to write. If the block fails, folders made here and still empty go.

    Raises UserError, which ends in `allowed`, where that file cannot be written: better before long work than after.
    """
    made: list[Path] = []
    try:
        made += takewhile(lambda folder: not folder.exists(), path.parents)
        if made:
            path.parent.mkdir(parents=True, exist_ok=True)
        _try(path)
    except OSError as error:
        _remove_empty(made)
        raise UserError(f"{path}: cannot be written: {error.strerror}; allowed: {allowed}") from error
    try:
        yield
    except BaseException:
        _remove_empty(made)
        raise


def is_plain_name(name: str) -> bool:
    """Whether a name can be that of a folder here: one line of printable characters, not hidden, not too long."""
    plain = name.isprintable() and "/" not in name and not name.startswith(".")
    return plain and 0 < len(name.encode()) <= LONGEST_NAME


def force_to_disk(path: Path) -> None:
    """Wait until a file's content, or a folder's entries (names made or renamed in it), are on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.tmp")


def _try(path: Path) -> None:
    """Raise the OSError that `write_atomically` would. What is asked of the system, not of permissions, is the truth:
    root passes every permission, and fails on a file system that is read-only or none of files."""
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    _temporary(path).touch()
    _temporary(path).unlink(missing_ok=True)


def _remove_empty(folders: list[Path]) -> None:
    for folder in folders:
        with suppress(OSError):
            folder.rmdir()
