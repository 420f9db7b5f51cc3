"""An override may say what imported weights do not; it may not change what they compute."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from framework.convert.conditions import NO_PART_OF_THE_FUNCTION
from framework.convert.factors import factors
from framework.errors import UserError
from framework.recipe.derive import section_of
from framework.recipe.errors import shorten

if TYPE_CHECKING:
    from framework.recipe import Loaded


def require_same_model(told: Loaded, loaded: Loaded, says: str) -> None:
    """Raise UserError, which names the field, where two recipes of one pattern are of other functions.

    told: the recipe without overrides, which `says` told of.
    """
    found = _function(loaded)
    for key, value in _function(told).items():
        if found.get(key) != value:
            raise UserError(f"model.{key} is {shorten(found.get(key))}; allowed: {shorten(value)}, as {says} says")


def require_standard(loaded: Loaded) -> None:
    """Raise UserError where the parametrization has factors of its own, unknown to weights from elsewhere."""
    if factors(loaded, holds_multipliers=True):
        raise UserError("parametrization changes what the weights mean; allowed: parametrization.kind=standard")


def _function(loaded: Loaded) -> dict[str, Any]:
    """By dotted name, the settings that a model's output depends on."""
    architecture = loaded.architecture
    found = {name: getattr(architecture.model, name) for name in ("norm", "norm_eps", "vocab_size", "tie_embeddings")}
    found |= {f"multipliers.{name}": value for name, value in architecture.model.multipliers}
    for sublayer in architecture.sublayers():
        section = section_of(sublayer.kind)
        found |= {f"{section}.{name}": getattr(sublayer.settings, name) for name in type(sublayer.settings).model_fields
                  if name not in NO_PART_OF_THE_FUNCTION}
    return found
