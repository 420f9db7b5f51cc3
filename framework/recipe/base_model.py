"""The model of base width that a width parametrization measures a recipe's model against."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from framework.recipe.architecture import Architecture, architecture
from framework.recipe.errors import DEFAULT, RecipeError
from framework.recipe.parameters import parameters
from framework.recipe.schema import Model, Parametrization
from framework.recipe.settle_model import settle_model
from framework.recipe.tree import merge, walk
from framework.recipe.validate import validate
from framework.recipe.yaml_reader import Entry, plain

KEY = "parametrization.base_model"


def base_architecture(model: Model, settings: Parametrization) -> Architecture | None:
    """The recipe's own model at d_model = base_d_model, with the fields of `base_model` over it; None without a base.

    Sizes that follow d_model (d_ff from multiplier, d_expert from granularity, heads' width, an SSM's channels) follow
    it here too; sizes stated as numbers stay. Raises RecipeError where that model cannot be, or has other parameters.
    """
    if settings.base_d_model is None:
        return None
    stated = {"d_model": settings.base_d_model} | dict(settings.base_model)
    try:
        tree = merge(_entries(model.model_dump(exclude_none=True), 0), _entries(stated, 1))
        level = {f"model.{key}": entry.level for key, entry in walk(tree)}
        base, _ = settle_model(validate(Model, plain(tree), "model"), level)
        found = architecture(base)
    except RecipeError as error:
        keys = ("parametrization.base_d_model", KEY) if settings.base_model else "parametrization.base_d_model"
        raise RecipeError(keys, f"the model of width {settings.base_d_model} cannot be: {error}") from None
    if _names(found) != _names(architecture(model)):
        raise RecipeError(KEY, "gives a model of other parameters; allowed: other sizes alone")
    return found


def _names(structure: Architecture) -> list[tuple[str, str]]:
    return [(parameter.name, parameter.role) for parameter in parameters(structure)]


def _entries(values: Any, level: int) -> Entry:
    """Plain nested values as a recipe's tree, stated on one level."""
    if isinstance(values, Mapping):
        values = {key: _entries(value, level) for key, value in values.items()}
    return Entry(values, DEFAULT, level)
