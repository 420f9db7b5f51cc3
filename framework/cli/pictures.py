"""Files that options take for pictures."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path

SUFFIXES = (".png", ".pdf", ".svg")


def picture(path: Path, option: str) -> AbstractContextManager[None]:
    """The block that draws it, see `writable`. Raises UserError before it for a file that no picture can be."""
    from framework.errors import UserError
    from framework.files import writable

    if path.suffix not in SUFFIXES:
        raise UserError(f"{option} {path}: no name of a picture; allowed: a file ending in {', '.join(SUFFIXES)}")
    return writable(path, f"{option} a file that may be written")
