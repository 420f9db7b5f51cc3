"""Learning rates as pure functions of the step, so that they can be tested, plotted and resumed without state."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from framework.recipe.schema import Optim


def warmup_factor(step: int, warmup_steps: int) -> float:
    """Linear from 0 to 1: `step` counts from 1, and step `warmup_steps` is the first at full rate."""
    return min(1.0, step / warmup_steps) if warmup_steps else 1.0


def last_full_step(optim: Optim, num_steps: int) -> int:
    """The last step before a trapezoid falls: 0 where it falls from the first on, num_steps where it never falls."""
    return min(num_steps, max(num_steps - round(optim.decay_fraction * num_steps), optim.warmup_steps))


def decay_shape(optim: Optim, step: int, num_steps: int) -> float:
    """1 at the peak, 0 where the final learning rate holds, which a decay reaches at the last step (`num_steps`).

    cosine: half a period from the end of warm-up on; trapezoid: linear over the last `decay_fraction` of all steps,
    so none with a fraction of 0; constant: 1 throughout.
    """
    if optim.schedule == "constant":
        return 1.0
    cosine = optim.schedule == "cosine"
    begin = optim.warmup_steps if cosine else last_full_step(optim, num_steps)
    if step <= begin:
        return 1.0
    progress = min(1.0, (step - begin) / (num_steps - begin)) if num_steps > begin else 1.0
    return 0.5 * (1 + math.cos(math.pi * progress)) if cosine else 1 - progress


def endpoints(optim: Optim, start: float = 1.0, end: float = 1.0) -> tuple[float, float]:
    """The peak of a group of parameters, and the rate that its decay ends at; the peak again where nothing decays.

    start, end: the group's factors on the peak and on the final rate (https://arxiv.org/abs/2507.03526): lr * start and
    lr * final_lr_fraction * end. The second is relative to the final rate of the base, not to the group's own peak.
    """
    decays = optim.schedule == "cosine" or (optim.schedule == "trapezoid" and optim.decay_fraction > 0)
    peak = optim.lr * start
    return peak, optim.lr * optim.final_lr_fraction * end if decays else peak


def learning_rate(optim: Optim, step: int, num_steps: int, start: float = 1.0, end: float = 1.0) -> float:
    """The rate of one group of parameters at a step (1..num_steps).

    `start` and `end` are the group's factors, see `endpoints`: final + (peak - final) * shape, times warm-up.
    """
    peak, final = endpoints(optim, start, end)
    shape = decay_shape(optim, step, num_steps)
    return warmup_factor(step, optim.warmup_steps) * (final + (peak - final) * shape)
