"""Which target a recipe's model can be, or why none."""

from __future__ import annotations

from typing import TYPE_CHECKING

from framework.convert.architectures import TARGETS
from framework.errors import UserError, nearest
from framework.recipe.errors import shorten

if TYPE_CHECKING:
    from framework.convert.target import Target
    from framework.recipe import Loaded

NUM_NEAR = 3
"""Targets of which the mismatches are told where there is none that fits."""


def choose(loaded: Loaded, name: str | None = None) -> Target:
    """The target of that name, else the first whose conditions the recipe meets.

    Raises UserError with every mismatch of the target, or of those that come nearest.
    """
    architecture = loaded.architecture
    if name is not None:
        target = find(name)
        if wrong := target.mismatches(architecture):
            raise UserError(f"--target {name} cannot express this model: {'; '.join(wrong)}")
        return target
    found = {target.model_type: target.mismatches(architecture) for target in TARGETS.values()}
    for model_type, wrong in found.items():
        if not wrong:
            return TARGETS[model_type]
    near = [name for name in found if TARGETS[name].fits_layers(architecture)] or list(found)
    near.sort(key=lambda name: len(found[name]))
    told = [f"{model_type}: {', '.join(found[model_type])}" for model_type in near[:NUM_NEAR]]
    raise UserError(f"no target can express this model; nearest are {'; '.join(told)}")


def find(name: str, where: str = "architecture") -> Target:
    """The target of a model_type. where: begins the message. Raises UserError for one that there is no table of."""
    if not isinstance(name, str) or name not in TARGETS:
        raise UserError(f"{where} {shorten(name)}: no table of it here{nearest(str(name), TARGETS)}; "
                        f"allowed: {', '.join(TARGETS)}")
    return TARGETS[name]
