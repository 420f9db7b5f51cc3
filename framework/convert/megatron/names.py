"""One set of names, whichever layout Megatron-Core wrote.

Layers alike may be stacked in one tensor (`decoder.layers.mlp...` [L, ...]) or stand apart (`decoder.layers.3.mlp...`);
experts are stacked, or apart too (`experts.7.linear_fc1`); then a gate and what it gates are `weight_w` and `weight_v`.
Here layers stand apart, experts of a layer are one tensor, and so are a gate and its other half.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from framework.convert.megatron.tables import EXPERTS, SPECS
from framework.errors import UserError

TRAINING = re.compile(r"(chained_\d+\.)?optimizer\.|rng_state|rerun_state|opt_param_scheduler")
"""Begins of what a checkpoint holds beside weights."""
_LAYERS = "decoder.layers."
_ONE_EXPERT = re.compile(rf"(.*{re.escape(EXPERTS)})\.(\d+)\.(.*)")
_HALVES = {"_w": 0, "_v": 1}


@dataclass(frozen=True)
class Source:
    """Where a part of a tensor stands: under a key of the checkpoint, whole or one layer of it. shape: of the part."""

    key: str
    layer: int | None
    shape: tuple[int, ...]


Sources = dict[tuple[int, int], Source]
"""By expert and half; one that is whole, or a stack that is, has expert or half 0 alone."""


@dataclass(frozen=True)
class Tensor:
    """A tensor under one of the names that tables have. apart: its experts are tensors of their own."""

    sources: Sources
    apart: bool

    @property
    def shape(self) -> tuple[int, ...]:
        """Of experts, and halves one after the other."""
        first = self.sources[min(self.sources)].shape
        halves = len({half for _, half in self.sources})
        experts = len({expert for expert, _ in self.sources})
        return (*((experts,) if self.apart else ()), first[0] * halves, *first[1:])


def split_layer(name: str) -> tuple[str, int | None]:
    """A name without its layer, and the layer: `decoder.layers.3.mlp` -> `decoder.layers.mlp`, 3."""
    first, _, rest = name.removeprefix(_LAYERS).partition(".")
    return (_LAYERS + rest, int(first)) if name.startswith(_LAYERS) and first.isdigit() else (name, None)


def canonical(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """The model's tensors by the names of tables, from the keys of a checkpoint. Raises UserError where parts differ.

    A norm before a mixture of experts gets the name that Transformer Engine gives it.
    """
    found: dict[str, Sources] = defaultdict(dict)
    apart: set[str] = set()
    for key, shape in shapes.items():
        if TRAINING.match(key):
            continue
        for name, source in _unstacked(key, shape):
            half = _HALVES.get(name[-2:], 0) if name[:-2].endswith("weight") else 0
            name = name[:-2] if name[:-2].endswith("weight") and name[-2:] in _HALVES else name
            expert = 0
            if one := _ONE_EXPERT.fullmatch(name):
                name, expert = f"{one[1]}.{one[3]}", int(one[2])
                apart.add(name)
            if (expert, half) in found[name]:
                raise UserError(f"{name} stands twice, as {found[name][expert, half].key} and {key}; allowed: once")
            found[name][expert, half] = source
    tensors = {name: Tensor(sources, name in apart) for name, sources in found.items()}
    for name, tensor in tensors.items():
        _require_complete(name, tensor)
    return {_norm_of_experts(name, tensors): tensor for name, tensor in tensors.items()}


def _unstacked(key: str, shape: tuple[int, ...]) -> Iterator[tuple[str, Source]]:
    if not key.startswith(_LAYERS) or split_layer(key)[1] is not None or not shape:
        yield key, Source(key, None, shape)
        return
    for layer in range(shape[0]):
        yield f"{_LAYERS}{layer}.{key.removeprefix(_LAYERS)}", Source(key, layer, shape[1:])


def _require_complete(name: str, tensor: Tensor) -> None:
    """Every half of every expert is there, all of one shape."""
    experts = 1 + max(expert for expert, _ in tensor.sources)
    halves = 1 + max(half for _, half in tensor.sources)
    if missing := [at for at in ((expert, half) for expert in range(min(experts, len(tensor.sources) + 1))
                                 for half in range(halves)) if at not in tensor.sources]:
        raise UserError(f"{name}: expert {missing[0][0]}, part {missing[0][1]} is missing; allowed: all experts whole")
    shapes = {source.shape for source in tensor.sources.values()}
    if len(shapes) > 1 or () in shapes and len(tensor.sources) > 1:
        raise UserError(f"{name}: its parts have shapes {sorted(shapes)}; allowed: one")


def _norm_of_experts(name: str, tensors: Mapping[str, Tensor]) -> str:
    layer, found, last = name.partition(SPECS["local"])
    return f"{layer}{SPECS['te']}{last}" if found and f"{layer}mlp.router.weight" in tensors else name
