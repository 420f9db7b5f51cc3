"""The model of base width that a width parametrization measures a recipe's model against."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from framework.recipe.architecture import Architecture, architecture
from framework.recipe.errors import RecipeError
from framework.recipe.schema import Model, Parametrization
from framework.recipe.settle_model import settle_model
from framework.recipe.validate import validate

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
        values = _merge(model.model_dump(exclude_none=True), stated)
        base = validate(Model, values, "model")
        level = {f"model.{key}": 0 for key, _ in _walk(model.model_dump(exclude_none=True))}
        base, _ = settle_model(base, level | {f"model.{key}": 1 for key, _ in _walk(stated)})
        found = architecture(base)
    except RecipeError as error:
        keys = ("parametrization.base_d_model", KEY) if settings.base_model else "parametrization.base_d_model"
        raise RecipeError(keys, f"the model of width {settings.base_d_model} cannot be: {error}") from None
    if (base.pattern, base.tie_embeddings) != (model.pattern, model.tie_embeddings):
        raise RecipeError(KEY, "gives another pattern or other ties; allowed: other sizes alone")
    return found


def _merge(values: Mapping[str, Any], later: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(values)
    for key, value in later.items():
        inner = merged.get(key)
        merged[key] = _merge(inner, value) if isinstance(inner, dict) and isinstance(value, Mapping) else value
    return merged


def _walk(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted key and value of everything, sections before what is in them."""
    for key, value in values.items():
        yield f"{prefix}{key}", value
        if isinstance(value, Mapping):
            yield from _walk(value, f"{prefix}{key}.")
