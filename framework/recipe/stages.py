"""Which layers of a model stand on which stage of a pipeline: pure functions."""

from __future__ import annotations

from collections.abc import Sequence

from framework.recipe.architecture import Architecture
from framework.recipe.flops import NOT_MULTIPLIED, mixing_flops
from framework.recipe.parameters import parameters
from framework.recipe.schema import Parallel

DEFAULT_STAGES_PER_RANK = {"1f1b": 1, "interleaved": 2, "zero_bubble": 1}


def num_stages(parallel: Parallel) -> int:
    """Stages of the whole pipeline; 1 where pp is."""
    if parallel.pp == 1:
        return 1
    return parallel.pp * (parallel.pp_stages_per_rank or DEFAULT_STAGES_PER_RANK[parallel.pp_schedule])


def stage_layers(architecture: Architecture, seq_len: int, num_stages: int) -> list[range]:
    """The layers of each stage, in order: between the pattern's cuts, or else balanced by cost.

    On one stage cuts mean nothing. Raises ValueError where there are fewer layers than stages, or another number of
    cuts than stages need.
    """
    if misfit := stages_misfit(architecture, num_stages):
        raise ValueError(misfit)
    if architecture.cuts and num_stages > 1:
        borders = [0, *architecture.cuts, len(architecture.layers)]
    else:
        borders = balanced_borders(layer_costs(architecture, seq_len), num_stages)
    return [range(first, end) for first, end in zip(borders, borders[1:], strict=False)]


def stages_misfit(architecture: Architecture, num_stages: int) -> str | None:
    """Why a model cannot be cut into so many stages; None where it can."""
    num_layers, num_cuts = len(architecture.layers), len(architecture.cuts)
    if num_layers < num_stages:
        return f"{num_stages} pipeline stages need as many layers, but the pattern has {num_layers}"
    if num_cuts and num_stages > 1 and num_cuts != num_stages - 1:
        return f"{num_stages} pipeline stages need {num_stages - 1} cuts, but the pattern has {num_cuts} |"
    return None


def layer_costs(architecture: Architecture, seq_len: int) -> list[int]:
    """FLOPs of a token's forward in each layer (`recipe.flops`); the unembedding counts with the last layer."""
    model = architecture.model
    costs = [
        round(sum(mixing_flops(sublayer, model.d_model, seq_len) for sublayer in layer.branches))
        for layer in architecture.layers
    ]
    for row in parameters(architecture):
        if row.name.startswith("layers.") and len(row.shape) > 1 and row.role not in NOT_MULTIPLIED:
            costs[int(row.name.split(".")[1])] += 2 * row.active_size
    costs[-1] += 2 * model.vocab_size * model.d_model
    return costs


def balanced_borders(costs: Sequence[int], num_parts: int) -> list[int]:
    """Cut a list into runs of at least one element whose largest sum is the smallest possible: 0, borders, length.

    Where there is a choice, later runs are filled first: the first stage of a pipeline keeps most micro-batches.
    """
    assert len(costs) >= num_parts, "fewer elements than runs"
    low, high = max(costs), sum(costs)
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if _fill(costs, num_parts, middle) else (middle + 1, high)
    return _fill(costs, num_parts, low)


def _fill(costs: Sequence[int], num_parts: int, limit: int) -> list[int] | None:
    """Borders of runs filled up to a limit from the back; None where they need more than num_parts runs."""
    borders, total = [len(costs)], 0
    for index in reversed(range(len(costs))):
        # Each of the elements that are left begins a run of its own where as many runs are still to come.
        is_full = total + costs[index] > limit or index + 1 == num_parts - len(borders)
        if is_full and borders[-1] > index + 1:
            borders.append(index + 1)
            total = 0
        total += costs[index]
        if total > limit:
            return None
    return [0, *reversed(borders)] if len(borders) == num_parts else None
