"""One recipe at several widths."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from framework.errors import UserError
from framework.recipe import load_recipe, parameters, require_runnable

if TYPE_CHECKING:
    from framework.recipe import Loaded

STARTS = {"attention_q": 0.0, "unembedding": 0.0, "router": 0.01}
"""Factors on initial values that the check starts from, where the recipe says nothing of these roles.

What a matrix of output class adds at first falls as 1 / sqrt(width), and so would all gradients through it: the
method's authors advise zeros for query and unembedding, and routers next to zero (at zero all choices would tie).
"""

NEUTRAL = {"model.moe.load_balance_weight": 0.0, "model.moe.z_loss_weight": 0.0, "optim.eps": 1e-15}
"""What the check leaves out unless it is overridden: auxiliary losses, whose gradients go whichever way the loads of a
few steps happen to fall, and Adam's epsilon, below which the first gradients of a scan's rates may stay."""


def at_widths(recipe: str, overrides: Sequence[str], widths: Sequence[int]) -> dict[int, Loaded]:
    """The recipe with each d_model; what follows d_model follows it. Raises UserError where a width cannot be, or
    d_model is given twice."""
    refuse_given(overrides, {"model.d_model": "--widths"})
    return {width: load_recipe(recipe, [*overrides, f"model.d_model={width}"]) for width in widths}


def refuse_given(overrides: Sequence[str], options: Mapping[str, str]) -> None:
    """Raise UserError for a field that an option of the command already varies. options: by field."""
    for override in overrides:
        key = override.partition("=")[0]
        if key in options:
            raise UserError(f"{override}: {options[key]} sets this field already; allowed: that option alone")


def require_trainable(recipes: Iterable[Loaded]) -> None:
    """Refuse before the first run what the last one would be refused for. Raises RecipeError."""
    for loaded in recipes:
        require_runnable(loaded)


def for_check(recipe: str, overrides: Sequence[str]) -> list[str]:
    """The overrides, and those that the coordinate check adds to them."""
    return [*overrides, *_added(load_recipe(recipe, overrides), {text.partition("=")[0] for text in overrides})]


def _added(loaded: Loaded, given: set[str]) -> Iterator[str]:
    init = loaded.recipe.parametrization.init.relative_std
    roles = {parameter.role for parameter in parameters(loaded.architecture)}
    for role, factor in STARTS.items():
        if role in roles and role not in init:
            yield f"parametrization.init.relative_std.{role}={factor}"
    yield from (f"{key}={value}" for key, value in NEUTRAL.items() if key not in given)
