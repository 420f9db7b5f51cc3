"""How a step is cut into forwards, and what a pipeline's schedule makes of them."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

from framework.recipe.stages import num_stages
from framework.training.preconditions import mesh_sizes
from framework.training.shares import forward_size
from parallel.bubble import bubble_share, one_forward_one_backward

if TYPE_CHECKING:
    from framework.recipe.schema import Recipe


def micro_batches_of(recipe: Recipe) -> int:
    """Forwards of a rank in a step."""
    count = mesh_sizes(recipe.parallel).batch
    return recipe.data.batch_size // count // forward_size(recipe.data, count)


def most_in_flight(recipe: Recipe, pipeline_rank: int, num_forwards: int) -> int:
    """Forwards of single stages whose backwards are still to come, at most, on a rank of pp.

    1F1B: as many as stages from here on. Interleaved (https://arxiv.org/abs/2104.04473, section 2.2, as
    torch.distributed.pipelining orders it): two for each rank after this one, and a round for each further stage of it;
    zero-bubble one for each rank after it.
    """
    layout = recipe.parallel
    if layout.pp == 1:
        return 1
    after, stages = layout.pp - 1 - pipeline_rank, num_stages(layout) // layout.pp
    if layout.pp_schedule == "1f1b":
        return min(after + 1, num_forwards)
    per_round = num_forwards // max(1, num_forwards // layout.pp)
    warm_up = (stages - 1) * per_round + (2 if layout.pp_schedule == "interleaved" else 1) * after
    return min(warm_up + 1, stages * num_forwards)


def idle_share(recipe: Recipe) -> float:
    """The share of the time for which ranks of a pipeline wait, the bubble.

    1F1B from its order. Interleaved: (p - 1) / (v m + p - 1) for m forwards on p ranks of v stages
    (https://arxiv.org/abs/2104.04473, section 2.2). Zero-bubble, where it splits backwards: a third of the wait, the
    gradients of weights filling it (https://arxiv.org/abs/2401.10241, section 3.1: F + B - W for each rank in place of
    F + B + W, taken as equal); it does not split them where activations are recomputed or blocks compiled.
    """
    layout, training, count = recipe.parallel, recipe.training, micro_batches_of(recipe)
    if layout.pp == 1:
        return 0.0
    if layout.pp_schedule == "1f1b":
        return _wait_of_1f1b(layout.pp, count)
    stages = num_stages(layout) // layout.pp
    splits = layout.pp_schedule == "zero_bubble" and training.recompute == "none" and not training.compile
    wait = (layout.pp - 1) / (3 if splits else 1)
    return wait / (stages * count + wait)


@cache
def _wait_of_1f1b(num_ranks: int, num_micro_batches: int) -> float:
    """Many layouts of a search share it."""
    return bubble_share(one_forward_one_backward(num_ranks, num_micro_batches))
