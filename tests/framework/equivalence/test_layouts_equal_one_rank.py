"""The table itself: every layout of three kinds of model against one rank, through the trainer."""

import contextlib

import pytest

from framework.equivalence import DEFAULT_LAYOUTS, TOLERANCES, check_layouts, parse_layout, require_engine
from framework.errors import UserError
from framework.recipe import load_recipe

RECIPES = ("quickstart", "moe_mamba/laptop", "hybrid/laptop")


def layouts(dtype: str) -> list[str]:
    """The list, without engines that are not installed or do not compute in a dtype."""
    found = []
    for name in DEFAULT_LAYOUTS:
        with contextlib.suppress(UserError):
            require_engine(parse_layout(name), dtype)
            found.append(name)
    return found


def failures(ranks, recipe: str, names: list[str], dtype: str) -> list:
    rows = list(check_layouts(load_recipe(recipe), [parse_layout(name) for name in names], dtype, ranks))
    assert [row.layout for row in rows] == names
    return [row for row in rows if not row.passes(TOLERANCES[dtype])]


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_third_of_the_layouts_equals_one_rank(ranks, recipe):
    """Another third for each recipe, so that all are tried. In float64 no choice of experts is nearly tied."""
    assert not failures(ranks, recipe, layouts("float64")[RECIPES.index(recipe)::3], "float64")


def test_every_stage_of_zero_equals_one_rank(ranks):
    names = [name for name in layouts("float32") if "-zero" in name]
    assert not failures(ranks, "quickstart", names, "float32")


@pytest.mark.full
@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("recipe", RECIPES)
def test_every_layout_equals_one_rank(ranks, recipe, dtype):
    assert not failures(ranks, recipe, layouts(dtype), dtype)
