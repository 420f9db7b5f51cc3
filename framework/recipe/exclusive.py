"""Fields of which a recipe gives one or the other: the later statement holds, two of one level are a mistake."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from framework.recipe.errors import RecipeError
from framework.recipe.settle import Replaced

EXCLUSIVE = (("training.steps", "training.tokens"), ("data.corpus", "data.blend"))


def settle_exclusive(values: Mapping[str, Any], level: Mapping[str, int]) -> tuple[dict[str, Any], Replaced]:
    """The plain values of a recipe with the earlier field of each pair left out.

    level: how late each dotted key was stated. Raises RecipeError where both stand on one level.
    """
    settled, replaced = dict(values), {}
    for pair in EXCLUSIVE:
        if not all(_stated(values, key) for key in pair):
            continue
        earlier, later = sorted(pair, key=level.__getitem__)
        if level[earlier] == level[later]:
            raise RecipeError(pair, "both are given; allowed: one of them")
        section, _, field = earlier.partition(".")
        settled[section] = {name: value for name, value in settled[section].items() if name != field}
        replaced[earlier] = later
    return settled, replaced


def _stated(values: Mapping[str, Any], key: str) -> bool:
    section, _, field = key.partition(".")
    inner = values.get(section)
    return isinstance(inner, dict) and inner.get(field) not in (None, {})
