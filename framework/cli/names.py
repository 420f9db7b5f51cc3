"""Names that options take for folders."""

from __future__ import annotations

from pathlib import Path


def folder_name(given: str | None, recipe: str, what: str = "run") -> str:
    """The name of a new folder: the one given, else the recipe's last part. Raises UserError for none of a folder."""
    from framework.errors import UserError
    from framework.files import is_plain_name

    name = Path(recipe).stem if given is None else given
    if not is_plain_name(name):
        raise UserError(f"--name {name!r}: no name for a {what}; allowed: a plain name for a folder, without '/'")
    return name
