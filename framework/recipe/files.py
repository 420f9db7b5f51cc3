"""Where recipes stand: by path under the checkout's `recipes/` without suffix, or any .yaml file."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager
from difflib import get_close_matches
from pathlib import Path

import framework
from framework.errors import UserError
from framework.files import new_file
from framework.recipe.errors import Origin, RecipeError, shorten

RECIPES = Path(framework.__file__).resolve().parents[1] / "recipes"
SUFFIXES = (".yaml", ".yml")


def recipe_names() -> list[str]:
    """The names of all recipes of the checkout, sorted."""
    return sorted(path.relative_to(RECIPES).with_suffix("").as_posix() for path in RECIPES.rglob("*.yaml"))


def find(name: str, beside: Path | None = None, origin: Origin | None = None) -> Path:
    """The file of a recipe's name, or of a path with suffix (relative to the folder `beside`).

    Raises RecipeError where there is none, with the names that resemble it.
    """
    if "\0" not in name and Path(name).suffix in SUFFIXES:
        path = (beside or Path()) / name
        if path.is_file():
            return path
        raise RecipeError((), f"no recipe file {shorten(name)}; allowed: a file that exists, or a name that "
                          "`upmix recipes` lists", origin)
    names = recipe_names()
    if name in names:
        return RECIPES / f"{name}.yaml"
    near = get_close_matches(name, names, n=3, cutoff=0.4)
    raise RecipeError((), f"no recipe {shorten(name)}; allowed: a name that `upmix recipes` lists, or a .yaml file"
                      + (f"; nearest: {', '.join(near)}" if near else ""), origin)


def new_recipe(path: Path, option: str) -> AbstractContextManager[None]:
    """The block that writes a recipe's file, see `new_file`. Raises UserError before it for no name of a recipe too."""
    if path.suffix not in SUFFIXES:
        raise UserError(f"{option} {path}: no name of a recipe; allowed: a file ending in .yaml")
    return new_file(path, option)


def read_text(path: Path) -> str:
    """The file's text. Raises RecipeError where it cannot be read."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise RecipeError((), f"cannot be read: {reason}; allowed: a readable YAML file", Origin(display(path))
                          ) from None


def display(path: Path) -> str:
    """The path as messages show it: relative to the checkout or to the working directory where it is inside."""
    resolved = path.resolve()
    if resolved.is_relative_to(RECIPES):
        return resolved.relative_to(RECIPES.parent).as_posix()
    return os.path.relpath(resolved) if resolved.is_relative_to(Path.cwd()) else str(path)
