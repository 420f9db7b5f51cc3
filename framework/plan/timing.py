"""How long a step takes: a range between stated assumptions, and what that makes of a token budget."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from framework.plan.schedule import idle_share
from framework.training.budget import make_budget

if TYPE_CHECKING:
    from collections.abc import Sequence

    from framework.plan.machine import Cluster
    from framework.plan.outline import Outline
    from framework.plan.traffic import Traffic

EFFICIENCY = (0.20, 0.55)
"""Assumed: the share of the peak at which a rank computes while it computes, at worst and at best. The least that was
measured is 0.24: narrow layers, which a slow host launched one by one (docs/plan.md)."""

LINK_EFFICIENCY = 0.8
"""Assumed: the share of a link's rate that large messages reach."""

BYTES_OF_UPDATE = 36
"""Of a parameter, its gradient and two moments: AdamW reads and writes all four, and the norm has read the gradient."""

ASSUMPTIONS = (
    f"computes at {EFFICIENCY[0]:.0%} (longest) to {EFFICIENCY[1]:.0%} (shortest) of the peak",
    f"links at {LINK_EFFICIENCY:.0%} of their rate; of what is sent none is hidden behind computing (longest), or all "
    "that can be (shortest)",
    "tokens spread evenly over experts; no time for data, checkpoints, evaluation or failures",
)


@dataclass(frozen=True)
class Timing:
    """Of the recipe's full batch; pairs are the longest and the shortest time, and what follows from either.

    flops: of a step, by the model's arithmetic, all ranks together. flops_on_rank: of the rank that computes most,
    recomputation included. bubble: the share of the time in which ranks of a pipeline wait. compute_seconds: at the
    peak. update_seconds: of the optimizer. mfu: model FLOP/s over the peak of all GPUs. days, gpu_hours: of the
    recipe's length; None without one.
    """

    flops: float
    flops_on_rank: float
    bubble: float
    compute_seconds: float
    communication_seconds: float
    update_seconds: float
    step_seconds: tuple[float, float]
    mfu: tuple[float, float]
    tokens_per_second: tuple[float, float]
    tokens: int | None
    days: tuple[float, float] | None
    gpu_hours: tuple[float, float] | None


def time_of(outline: Outline, cluster: Cluster, traffic: Sequence[Traffic], num_kept: int) -> Timing:
    """traffic: of the rank that sends longest. num_kept: parameters of the rank that keeps most."""
    recipe, machine = outline.recipe, cluster.machine
    step_tokens = recipe.data.batch_size * recipe.data.seq_len
    flops = float(outline.flops_per_token) * step_tokens
    peak = machine.flops if recipe.training.dtype == "bfloat16" else machine.flops_float32
    repeated = 4 / 3 if recipe.training.recompute == "full" else 1.0
    on_rank = flops / cluster.num_gpus * repeated * _unevenness(outline)
    bubble, compute = idle_share(recipe), on_rank / peak
    communication = sum(row.seconds for row in traffic) / LINK_EFFICIENCY
    update = BYTES_OF_UPDATE * num_kept / machine.bandwidth
    longest = (compute / EFFICIENCY[0] + communication) / (1 - bubble) + update
    shortest = max(compute / EFFICIENCY[1] / (1 - bubble), communication) + update
    seconds = longest, shortest
    tokens, whole = None, None
    if recipe.training.unit is not None:
        budget = make_budget(recipe.data, recipe.training)
        tokens = budget.tokens_after(budget.num_steps)
        whole = tuple(tokens / step_tokens * value for value in seconds)
    return Timing(
        flops, on_rank, bubble, compute, communication, update, seconds,
        tuple(flops / value / (cluster.num_gpus * peak) for value in seconds),
        tuple(step_tokens / value for value in seconds), tokens,
        whole and tuple(value / 86400 for value in whole),
        whole and tuple(value / 3600 * cluster.num_gpus for value in whole),
    )


def _unevenness(outline: Outline) -> float:
    """What the costliest rank of a pipeline computes, over the mean."""
    pp = outline.sizes.pp
    ranks = [sum(outline.costs[layer] for layer in outline.layers_on(rank)) for rank in range(pp)]
    return max(ranks) * pp / sum(outline.costs)
