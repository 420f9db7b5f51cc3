"""What a rank sends in a step, by axis: bytes, from the formulas of docs/parallelism.md.

Gathers and reduce-scatters of R ranks send (R - 1) parts, sums over ranks twice that (rings), exchanges what is for
others. Left out are numbers of a few bytes a token: counts, statistics, gradients of norms that tp sums.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from framework.plan.activations import Forward, make_forward, travelling_rows
from framework.plan.holdings import units_on
from framework.plan.schedule import micro_batches_of
from framework.recipe.parameters import inner_width

if TYPE_CHECKING:
    from framework.plan.machine import Machine
    from framework.plan.outline import Outline
    from framework.recipe import Sublayer

AXES = ("dp", "ep", "tp", "cp", "pp")


@dataclass(frozen=True)
class Traffic:
    """Bytes that one rank sends in a step along an axis: to GPUs of its node, and to other nodes. seconds: at the
    links' rates, both at a time.
    """

    axis: str
    nvlink: float
    network: float
    seconds: float


def sent_on(outline: Outline, pipeline_rank: int) -> dict[str, float]:
    """Bytes that a rank of pp sends in a step, by axis; of data parallelism together."""
    return {axis: sum(parts.values()) for axis, parts in _sent(outline, pipeline_rank).items()}


def traffic_on(outline: Outline, pipeline_rank: int, machine: Machine) -> list[Traffic]:
    """The same by link, on nodes that are filled rank after rank."""
    sizes, rows = outline.sizes, []
    for axis, parts in _sent(outline, pipeline_rank).items():
        nvlink = network = 0.0
        for (stride, ranks, is_ring), size in parts.items():
            outside = size * _share_outside(stride, ranks, is_ring, min(machine.node, sizes.world))
            nvlink, network = nvlink + size - outside, network + outside
        rows.append(Traffic(axis, nvlink, network, max(nvlink / machine.nvlink, network / machine.network)))
    return rows


def _share_outside(stride: int, ranks: int, is_ring: bool, node: int) -> float:
    """Of what a rank sends to `ranks` ranks that are `stride` apart, the share that leaves a node.

    A ring passes every border between nodes once, and all of a node's ranks take turns at it; an exchange sends each
    other rank as much.
    """
    inside = max(1, min(ranks, node // stride))
    if inside == ranks:
        return 0.0
    return 1 / inside if is_ring else (ranks - inside) / (ranks - 1)


Way = tuple[int, int, bool]
"""How far ranks of a group are apart, how many there are, and whether they pass on in a ring."""


def _sent(outline: Outline, pipeline_rank: int) -> dict[str, dict[Way, float]]:
    recipe, sizes = outline.recipe, outline.sizes
    forward, count = make_forward(outline), micro_batches_of(recipe)
    found: dict[str, dict[Way, float]] = {axis: {} for axis in AXES}
    _add_data(found["dp"], outline, pipeline_rank, count)
    repeats = 1.5 if recipe.training.recompute == "full" else 1.0  # a second forward beside forward and backward
    stages = outline.stages_on(pipeline_rank)
    ep, tp, cp, pp = (1, sizes.ep, False), (1, sizes.tp, True), (sizes.tp, sizes.cp, False), (
        sizes.world // sizes.pp, sizes.pp, False)
    total = dict.fromkeys(("ep", "tp", "cp"), 0.0)
    for layer in (layer for stage in stages for layer in stage):
        for sublayer in outline.architecture.layers[layer].branches:
            total["tp"] += repeats * _tensor(sublayer, forward)
            if sublayer.kind == "moe":
                total["ep"] += repeats * _experts(sublayer, forward)
            total["cp"] += repeats * _context(sublayer, forward)
    total["tp"] += _ends(stages, outline, forward)
    for axis, way in (("ep", ep), ("tp", tp), ("cp", cp)):
        found[axis][way] = count * total[axis]
    if sizes.pp > 1:
        last = len(outline.architecture.layers)
        borders = sum((stage.start > 0) + (stage.stop < last) for stage in stages)
        found["pp"][pp] = float(count * borders * forward.stream)
    return found


def _add_data(ways: dict[Way, float], outline: Outline, pipeline_rank: int, count: int) -> None:
    """Weights gathered for forwards and backwards, gradients summed once, in float32, and over replicas."""
    sizes = outline.sizes
    for unit in units_on(outline, pipeline_rank):
        stride = sizes.ep if unit.is_experts else sizes.tp
        if unit.shards > 1:
            gathers = 1 if sizes.pp > 1 else count * (2 if unit.is_freed else 1)
            size = unit.kept * (unit.shards - 1) * (gathers * unit.itemsize + 4)
            way = stride, unit.shards, True
            ways[way] = ways.get(way, 0.0) + size
        if unit.replicas > 1:
            way = sizes.one_copy, unit.replicas, True
            ways[way] = ways.get(way, 0.0) + 8 * unit.kept * (unit.replicas - 1) / unit.replicas


def _experts(sublayer: Sublayer, forward: Forward) -> float:
    """Rows to the experts and back, and their gradients; deduplicated, gates (both ways) and places beside them."""
    ranks = forward.sizes.ep
    rows = travelling_rows(sublayer, forward)
    size = 4 * rows * forward.itemsize * forward.width
    if forward.deduplicates:
        size += 12 * forward.tokens * sublayer.settings.top_k
    return size * (ranks - 1) / ranks


def _tensor(sublayer: Sublayer, forward: Forward) -> float:
    """A block's input gathered, its output scattered, and in the backward the other way round."""
    ranks, kind, settings = forward.sizes.tp, sublayer.kind, sublayer.settings
    if kind == "moe" and not settings.num_shared_experts:
        return 0.0
    size = 4 * forward.gathered
    if kind == "mamba1":
        size += 4 * forward.itemsize * forward.gathered_tokens * (settings.dt_rank + 2 * settings.d_state)
    return size * (ranks - 1) / ranks


def _ends(stages: list[range], outline: Outline, forward: Forward) -> float:
    """Embeddings scattered, the last layer's output gathered, and back; three numbers a token for the loss."""
    ranks, last = forward.sizes.tp, len(outline.architecture.layers)
    embeds, ends = any(stage.start == 0 for stage in stages), any(stage.stop == last for stage in stages)
    size = 2 * forward.gathered * (embeds + ends) + 2 * 12 * forward.gathered_tokens * ends
    return size * (ranks - 1) / ranks


def _context(sublayer: Sublayer, forward: Forward) -> float:
    """Heads swapped for tokens, or keys and values round the ring; states of parts, last inputs of convolutions."""
    settings, ranks, tp, U = sublayer.settings, forward.sizes.cp, forward.sizes.tp, forward.gathered_tokens
    if ranks == 1 or sublayer.kind in ("ffn", "moe"):
        return 0.0
    if sublayer.kind == "attention":
        heads, kv_heads = settings.num_heads // tp, max(1, settings.num_kv_heads // tp)
        head = forward.itemsize * U * settings.head_dim
        if heads % ranks == 0:
            kv_heads = -(-kv_heads // ranks) * ranks if kv_heads < ranks else kv_heads
            return 2 * (2 * heads + 2 * kv_heads) * head * (ranks - 1) / ranks
        return 4 * kv_heads * head * (ranks - 1) + 8 * U * settings.head_dim * kv_heads * ranks
    inner = inner_width(forward.width, settings) // tp
    states = 4 * forward.sequences * inner * settings.d_state * (2 if sublayer.kind == "mamba1" else 1)
    groups = 2 * settings.num_groups * settings.d_state if sublayer.kind == "mamba2" else 0
    tails = forward.itemsize * forward.sequences * (settings.d_conv - 1) * (inner + groups)
    return 2 * (ranks - 1) * states + 2 * tails
