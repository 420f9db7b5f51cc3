"""Where sweeps stand: by path under the checkout's `sweeps/` without suffix, or any .yaml file."""

from __future__ import annotations

from pathlib import Path

from framework.recipe.files import RECIPES, SUFFIXES, display, read_text
from framework.recipe.yaml_reader import Entry, read_yaml

SWEEPS = RECIPES.parent / "sweeps"
MARK = "recipe"
"""The key that a sweep's file has and a recipe's has not."""


def sweep_names() -> list[str]:
    """The names of all sweeps of the checkout, sorted."""
    return sorted(path.relative_to(SWEEPS).with_suffix("").as_posix() for path in SWEEPS.rglob("*.yaml"))


def is_sweep(source: str) -> bool:
    """Whether a source is a sweep's name, or a file of one. Raises RecipeError for a file that is no YAML."""
    return find_sweep(source) is not None


def find_sweep(source: str) -> Path | None:
    """The file of a sweep's name or path, None of anything else. Raises RecipeError for a file that is no YAML."""
    if "\0" in source:
        return None
    path = Path(source)
    if path.suffix in SUFFIXES:
        return path if path.is_file() and _is_marked(read_tree(path)) else None
    return SWEEPS / f"{source}.yaml" if source in sweep_names() else None


def read_tree(path: Path) -> Entry:
    """A sweep's file with the line of everything in it. Raises RecipeError."""
    return read_yaml(read_text(path), display(path), 0, items=True)


def _is_marked(tree: Entry) -> bool:
    return isinstance(tree.value, dict) and MARK in tree.value
