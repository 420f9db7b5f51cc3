"""Merging recipes that carry the origin of every value, and overriding single values of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any

from framework.recipe.errors import COMMAND_LINE, RecipeError, shorten
from framework.recipe.yaml_reader import Entry, NotYAML, read_yaml, require_whole


def merge(base: Entry, later: Entry) -> Entry:
    """Mappings are merged key by key, and anything else is replaced by the later value."""
    if not (isinstance(base.value, dict) and isinstance(later.value, dict)):
        return later
    merged = dict(base.value)
    for key, entry in later.value.items():
        merged[key] = merge(merged[key], entry) if key in merged else entry
    return Entry(merged, later.origin, later.level)


def override(tree: Entry, assignments: Sequence[str], level: int) -> Entry:
    """Apply `a.b.c=value` from the command line, one after the other. Raises RecipeError for a key given twice."""
    seen: set[str] = set()
    for assignment in assignments:
        key = assignment.partition("=")[0].strip()
        if key in seen:
            raise RecipeError(key, "given twice; allowed: once", COMMAND_LINE)
        seen.add(key)
        tree = merge(tree, _parse_assignment(assignment, level))
    return tree


def walk(entry: Entry, prefix: str = "") -> Iterator[tuple[str, Entry]]:
    """Yield (dotted key, entry) of every value, sections before what is in them."""
    for key, inner in entry.value.items():
        yield f"{prefix}{key}", inner
        if isinstance(inner.value, dict):
            yield from walk(inner, f"{prefix}{key}.")


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Plain nested values by dotted key; an empty mapping is left out."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat


@lru_cache(maxsize=4096)  # the variants of a recipe share most of them
def _parse_assignment(assignment: str, level: int) -> Entry:
    key, equals, text = assignment.partition("=")
    path = key.strip().split(".")
    if not equals or not all(path):
        raise RecipeError((), f"given {shorten(assignment)}; allowed: key=value with a dotted key, "
                          "as model.moe.granularity=2", COMMAND_LINE)
    entry = Entry(_parse_value(key.strip(), text, level), COMMAND_LINE, level)
    for part in reversed(path):
        entry = Entry({int(part) if part.isdecimal() else part: entry}, COMMAND_LINE, level)
    return entry


def _parse_value(key: str, text: str, level: int) -> Any:
    # A pattern is never read as YAML: [mE] would be a list and *E an alias there.
    if key == "model.pattern":
        return text.strip().strip("\"'")
    try:
        require_whole(text, COMMAND_LINE)
        return read_yaml(text, COMMAND_LINE.place, level, numbered=False).value
    except NotYAML:
        return text
    except RecipeError as error:
        raise RecipeError(".".join((key, *error.keys)), error.text, COMMAND_LINE) from None
