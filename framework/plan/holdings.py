"""Which numbers of a model a rank holds, in the units that `fully_shard` gathers: shapes after every split."""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass
from functools import cache
from math import prod
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from framework.plan.outline import Outline
    from framework.recipe import Parameter, Sublayer

EMBEDDING, HEAD = "embedding", "head"

_INPUTS = {
    "attention": {"out"}, "ffn": {"down"}, "moe": {"down"}, "mamba1": {"B", "C", "dt_low", "out"}, "mamba2": {"out"},
}
"""By kind of sublayer, matrices that tp splits by what they sum over; all others of a block it splits by outputs
(`parallelize.tensor.PLACEMENTS`)."""


@dataclass(frozen=True)
class Unit:
    """Parameters that are gathered as one.

    layer: where they stand, a number, EMBEDDING or HEAD. is_experts: they are a layer's experts. size: numbers once
    gathered, after tp and ep. kept: of these, what one rank keeps; the first of the ranks, which has the most. shards,
    replicas: ranks over which they are sharded, copies of the shards. itemsize: bytes of a gathered number. is_freed:
    between forward and backward. in_place: a single rank uses them where they lie.
    """

    layer: int | str
    is_experts: bool
    size: int
    kept: int
    shards: int
    replicas: int
    itemsize: int
    is_freed: bool
    in_place: bool


def units_on(outline: Outline, pipeline_rank: int) -> list[Unit]:
    """What a rank of pp holds, in the order of the model."""
    held: set[int | str] = set(outline.layers_on(pipeline_rank))
    is_last = pipeline_rank == outline.sizes.pp - 1
    if pipeline_rank == 0 or is_last and outline.recipe.model.tie_embeddings:
        held.add(EMBEDDING)
    if is_last:
        held.add(HEAD)
    return [unit for unit in outline.units if unit.layer in held]


def units(outline: Outline) -> list[Unit]:
    """Of the whole model, in its order, as ranks of pp hold them."""
    is_narrow = outline.recipe.training.dtype != "float32"
    groups: dict[tuple, list[Parameter]] = defaultdict(list)
    for row in outline.rows:
        layer, _ = _place(row.name, row.role == "embedding")
        is_wide = is_narrow and _stays_float32(row)
        groups[layer, ".experts." in row.name, row.name.rpartition(".")[0] if is_wide else ""].append(row)
    return [_unit(outline, *key, rows) for key, rows in groups.items()]


@cache
def _place(name: str, is_embedding: bool) -> tuple[int | str, int]:
    """The layer and branch of a parameter, or the end of the model that it stands at. `search` asks for each often."""
    match = re.match(r"layers\.(\d+)\.(?:branches\.(\d+)\.)?", name)
    if match is None:
        return (EMBEDDING if is_embedding else HEAD), 0
    return int(match[1]), int(match[2] or 0)


def _unit(outline: Outline, layer: int | str, is_experts: bool, wide: str, rows: list[Parameter]) -> Unit:
    recipe, sizes = outline.recipe, outline.sizes
    shards = sizes.expert_dp if is_experts else sizes.dp_shard * sizes.cp
    shapes = [_local_shape(outline, row) for row in rows]
    narrow = recipe.training.dtype != "float32" and not wide
    is_freed = sizes.pp == 1 and not wide and layer != HEAD and not (
        layer == EMBEDDING and recipe.model.tie_embeddings)
    return Unit(
        layer, is_experts, sum(map(prod, shapes)), sum(_kept(shape, shards, is_experts) for shape in shapes), shards,
        sizes.dp_replicate, 2 if narrow else 4, is_freed,
        in_place=sizes.tp == sizes.pp == 1 and shards * sizes.dp_replicate == 1,
    )


def _kept(shape: tuple[int, ...], shards: int, is_experts: bool) -> int:
    """Of the first rank. Experts are sharded by their next dim where there are fewer than ranks."""
    if is_experts and shape[0] < shards and shape[1] % shards == 0:
        return prod(shape) // shards
    return -(-shape[0] // shards) * prod(shape[1:])


def _local_shape(outline: Outline, row: Parameter) -> tuple[int, ...]:
    sizes, (layer, branch) = outline.sizes, _place(row.name, row.role == "embedding")
    if ".experts." in row.name:
        return row.shape[0] // sizes.ep, *row.shape[1:]
    if sizes.tp == 1:
        return row.shape
    if not isinstance(layer, int):
        return (-(-row.shape[0] // sizes.tp), *row.shape[1:]) if len(row.shape) > 1 else row.shape
    sublayer = outline.architecture.layers[layer].branches[branch]
    name = row.name.partition(".block.")[2]
    if not _is_split(sublayer, name, sizes.tp):
        return row.shape
    module = name.removeprefix("shared.").partition(".")[0]
    if module in _INPUTS[sublayer.kind]:
        return row.shape[0], row.shape[1] // sizes.tp
    return row.shape[0] // sizes.tp, *row.shape[1:]


def _is_split(sublayer: Sublayer, name: str, tp: int) -> bool:
    """Whether tp splits a parameter of a block; norms before blocks and routers have the name "" or router."""
    kind, settings, module = sublayer.kind, sublayer.settings, name.partition(".")[0]
    if not name:
        return False
    if kind == "moe":
        return name.startswith("shared.")
    if kind == "attention":
        whole = {"k", "v", "k_norm"} if settings.num_kv_heads % tp else set()
        if settings.qk_norm == "head":
            whole |= {"q_norm", "k_norm"}
        return module not in whole
    if kind == "mamba1":
        return not module.endswith("_norm")
    if kind == "mamba2":
        return not (settings.num_groups % tp and module in {"B", "C", "conv_B", "conv_C"})
    return True


def _stays_float32(row: Parameter) -> bool:
    """Modules that say `keep_float32`: routers, and Mamba's rates, skips and dt biases."""
    return row.role == "router" or ".dynamics." in row.name
