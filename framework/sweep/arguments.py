"""What the command line adds to a sweep, or makes of a recipe."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from framework.recipe.errors import COMMAND_LINE, RecipeError, shorten
from framework.recipe.yaml_reader import Entry, plain, read_yaml
from framework.sweep import values
from framework.sweep.axes import Axis, Node, zipped
from framework.sweep.values import Value

SEED = "training.seed"
_TOGETHER = re.compile(r"""\s&\s(?=(?:[^"']|"[^"]*"|'[^']*')*$)""")


@dataclass(frozen=True)
class Arguments:
    """overrides: key=value for all cells. over: `key=value,value,...`, `key=range`, or several of these joined by
    ` & `, which are zipped. seeds: their number, or a list or range of them. link, where: as in a sweep's file.
    tags: added to the sweep's. name: of the sweep.
    """

    overrides: tuple[str, ...] = ()
    over: tuple[str, ...] = ()
    seeds: str | None = None
    link: tuple[str, ...] = ()
    where: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    name: str | None = None


def read_over(text: str) -> Node:
    """The axis, or the zip of axes, of one --over. Raises RecipeError."""
    axes = [_axis(part, text) for part in _TOGETHER.split(text)]
    return axes[0] if len(axes) == 1 else zipped(axes, COMMAND_LINE)


def read_seeds(given: Any, what: str, origin: Any) -> Axis:
    """The axis of a number of seeds, of seeds themselves, or of a range of them. Raises RecipeError."""
    if isinstance(given, int) and not isinstance(given, bool) and 0 < given <= values.MOST_CELLS:
        return Axis(SEED, tuple(map(values.of, range(given))), origin)
    if isinstance(given, str) and values.is_range(given):
        return Axis(SEED, values.read_range(given, what, origin), origin)
    if isinstance(given, tuple) and given:
        return Axis(SEED, tuple(map(values.of, given)), origin)
    raise RecipeError(what, f"given {shorten(given)}; allowed: how many (3: seeds 0, 1, 2), or the seeds themselves",
                      origin)


def seeds_argument(text: str) -> Axis:
    """The axis of --seeds. Raises RecipeError."""
    given = text if values.is_range(text) else _list("--seeds", text)
    return read_seeds(given[0] if isinstance(given, tuple) and len(given) == 1 else given, "--seeds", COMMAND_LINE)


def check_key(key: Any, origin: Any) -> str:
    """A dotted key, as an override can hold it. Raises RecipeError."""
    if not isinstance(key, str) or not all(key.split(".")) or re.search(r"[=\s]", key):
        raise RecipeError((), f"given the key {shorten(key)}; allowed: a dotted key, as model.moe.granularity", origin)
    return key


def _axis(text: str, whole: str) -> Axis:
    key, equals, listed = text.partition("=")
    if not equals or not key.strip():
        raise RecipeError("--over", f"given {shorten(whole)}; allowed: key=value,value,... or key=range, several of "
                          "them joined by ' & '", COMMAND_LINE)
    key = check_key(key.strip(), COMMAND_LINE)
    return Axis(key, _values(key, listed.strip()), COMMAND_LINE)


def _values(key: str, text: str) -> tuple[Value, ...]:
    if values.is_range(text):
        return values.read_range(text, key, COMMAND_LINE)
    if key == "model.pattern":  # never read as YAML: *E would be an alias there
        return tuple(values.of(part.strip().strip("\"'")) for part in text.split(","))
    return tuple(map(values.of, _list(key, text)))


def _list(key: str, text: str) -> tuple[Any, ...]:
    read: Callable[[], Entry] = lambda: read_yaml(f"[{text}]", COMMAND_LINE.place, 0, numbered=False)  # noqa: E731
    try:
        found = plain(read())
    except RecipeError as error:
        raise RecipeError(key, f"given {shorten(text)}: {error.text}", COMMAND_LINE) from None
    if not isinstance(found, tuple) or not found:
        raise RecipeError(key, f"given {shorten(text)}; allowed: one value or more, joined by commas", COMMAND_LINE)
    return found
