"""Files that are whole or not there, whenever the process dies."""

import os
from pathlib import Path


def write_atomically(path: Path, text: str) -> None:
    """Write under a temporary name, force to disk, rename. Readers see the old text or the new."""
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.rename(path)
    sync_folder(path.parent)


def sync_folder(path: Path) -> None:
    """Force a folder's entries (names made or renamed in it) to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
