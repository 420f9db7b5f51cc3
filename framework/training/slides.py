"""Slides of a trapezoid: one trunk, many decays, as the joint scaling laws' runs shared checkpoints (2502.05172).

Until a run of T steps begins to decay it is, step for step, the same run as a longer one: the same rate, the same
data. So the longest run is the trunk, and a shorter one branches off it after the last step at full rate (derived; the
paper says only that checkpoints are reused). All of it follows from the recipe alone; imports no torch.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from framework.optim import last_full_step
from framework.recipe.errors import DEFAULT, Origin, RecipeError
from framework.training.budget import make_budget

if TYPE_CHECKING:
    from framework.recipe import Loaded
    from framework.recipe.schema import Training

KEY = "training.slides"


@dataclass(frozen=True)
class Slide:
    """A shorter run of a recipe.

    name: of its run folder. length: as the recipe states it, in `unit` (steps or tokens). num_steps: that length in
    steps. branch_step: the last one that it shares with the trunk; the rate falls after it.
    """

    name: str
    length: int
    unit: str
    num_steps: int
    branch_step: int


def list_slides(loaded: Loaded, name: str) -> tuple[Slide, ...]:
    """The slides of a recipe that is trained under a name, shortest first.

    Raises RecipeError for a slide that shares no step with the trunk, or has no step left to decay in.
    """
    return tuple(_slide(loaded, name, length) for length in loaded.recipe.training.slides)


def slide_recipe(loaded: Loaded, slide: Slide) -> Loaded:
    """The trunk's recipe with the slide's length."""
    origins = loaded.origins | {f"training.{slide.unit}": Origin(f"a slide, {loaded.origins[KEY]}"), KEY: DEFAULT}
    training = _shortened(loaded.recipe.training, slide.length)
    return replace(loaded, recipe=loaded.recipe.model_copy(update={"training": training}), origins=origins)


def _slide(loaded: Loaded, name: str, length: int) -> Slide:
    recipe = loaded.recipe
    num_steps = make_budget(recipe.data, _shortened(recipe.training, length)).num_steps
    branch_step = last_full_step(recipe.optim, num_steps)
    if not 0 < branch_step < num_steps:
        raise _refusal(loaded, length, num_steps, branch_step)
    return Slide(f"{name}-slide-{length}", length, recipe.training.unit, num_steps, branch_step)


def _shortened(training: Training, length: int) -> Training:
    return training.model_copy(update={training.unit: length, "slides": ()})


def _refusal(loaded: Loaded, length: int, num_steps: int, branch_step: int) -> RecipeError:
    optim = loaded.recipe.optim
    if branch_step:
        how = f"no step left to decay in (warmup_steps {optim.warmup_steps}, decay_fraction {optim.decay_fraction:g})"
        allowed = "longer ones"
    else:
        how = f"no step at full rate (decay_fraction {optim.decay_fraction:g})"
        allowed = "longer ones, or a smaller decay_fraction"
    return RecipeError(KEY, f"{length} {loaded.recipe.training.unit} ({num_steps} steps) leave {how}; "
                       f"allowed: {allowed}").located(loaded.origins, DEFAULT)
