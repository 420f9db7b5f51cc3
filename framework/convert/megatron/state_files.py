"""Tensors into the files of a `torch_dist` checkpoint, one at a time.

It is a torch.distributed.checkpoint with further entries: for each module that may keep more than weights (scales of
lower precisions), an `_extra_state`, without which a strict load fails. All of them are None here, as those of modules
that keep nothing are. Layers that are all alike are stacked in one tensor, each a part of it, as Megatron-LM does.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, MetadataIndex, TensorProperties
from torch.distributed.checkpoint.planner import SavePlan, TensorWriteData, WriteItem, WriteItemType

from framework.convert.errors import plain_errors
from framework.convert.megatron.names import split_layer
from framework.convert.megatron.tables import EXPERTS
from framework.convert.weights import TheirTensor, Weights

STATEFUL = frozenset({
    "linear_qkv", "linear_proj", "linear_fc1", "linear_fc2", "q_layernorm", "k_layernorm", "pre_mlp_layernorm",
    "final_layernorm", "final_norm", "in_proj", "out_proj",
})
"""Modules that some version of Megatron-Core or Transformer Engine asks for a state of."""


@dataclass(frozen=True)
class Part:
    """What is written at a time: a tensor, or of a stack of experts one; `at` its place among layers and experts.

    key: the name in the checkpoint. count: how many layers and experts there are, as many numbers as `at` has.
    """

    tensor: TheirTensor
    key: str
    at: tuple[int, ...]
    count: tuple[int, ...]

    @property
    def inner(self) -> tuple[int, ...]:
        """The shape within a layer and expert."""
        shape = self.tensor.shape
        return shape[1:] if _is_stack(self.tensor.name) else shape

    @property
    def state_keys(self) -> list[str]:
        """States that go with it."""
        module = self.key.split(".weight")[0]
        before, _, last = module.rpartition(".")
        if module == "embedding.word_embeddings":  # the output layer asks for its own, though the weight is tied
            return ["output_layer._extra_state/shard_0_1"]
        if last not in STATEFUL or module == self.key:
            return []
        shard = f"shard_{'.'.join(map(str, self.at or (0,)))}_{'.'.join(map(str, self.count or (1,)))}"
        modules = [module, f"{before}.core_attention"] if last == "linear_proj" else [module]
        return [f"{each}._extra_state/{shard}" for each in modules]


def write_state(folder: Path, weights: Weights, stacked: int | None) -> None:
    """Write every tensor and every empty state. stacked: the number of layers, where all are alike, or None."""
    parts = list(_parts(weights.tensors, stacked))
    state = {part.key: torch.empty((*part.count, *part.inner), dtype=part.tensor.dtype, device="meta")
             for part in parts} | {key: None for part in parts for key in part.state_keys}
    writer = dcp.FileSystemWriter(folder, single_file_per_rank=True, sync_files=True, per_thread_copy_ahead=0)
    with plain_errors(folder):
        dcp.save(state, storage_writer=writer, planner=_Planner(weights, parts), no_dist=True)


def _parts(tensors: list[TheirTensor], stacked: int | None) -> Iterator[Part]:
    for tensor in tensors:
        key, at, count = tensor.name, (), ()
        if stacked is not None:
            key, layer = split_layer(tensor.name)
            at, count = ((), ()) if layer is None else ((layer,), (stacked,))
        if not _is_stack(tensor.name):
            yield Part(tensor, key, at, count)
            continue
        for expert in range(tensor.shape[0]):
            yield Part(tensor, key, (*at, expert), (*count, tensor.shape[0]))


def _is_stack(name: str) -> bool:
    return f".{EXPERTS}." in name


class _Planner(dcp.DefaultSavePlanner):
    """Plans with meta tensors, and makes each part when it is its turn to be written.

    The writer keeps what it has written until its file is closed; so the memory of the part before is let go here.
    """

    def __init__(self, weights: Weights, parts: list[Part]) -> None:
        super().__init__(flatten_state_dict=False)
        self._weights = weights
        self._parts = {self._index(part): part for part in parts}
        self._whole: tuple[str, Tensor] | None = None
        self._before: Tensor | None = None

    @staticmethod
    def _index(part: Part) -> MetadataIndex:
        return MetadataIndex(part.key, torch.Size([*part.at, *[0] * len(part.inner)]))

    def create_local_plan(self) -> SavePlan:
        """One item for each part, and for each state."""
        items = [WriteItem(MetadataIndex(name), WriteItemType.BYTE_IO)
                 for name, entry in self.state_dict.items() if entry is None]
        for index, part in self._parts.items():
            chunk = ChunkStorageMetadata(index.offset, torch.Size([*[1] * len(part.at), *part.inner]))
            whole = self.state_dict[part.key]
            data = TensorWriteData(chunk, TensorProperties(whole.dtype), whole.shape)
            items.append(WriteItem(index, WriteItemType.SHARD, tensor_data=data))
        self.plan = SavePlan(items)
        return self.plan

    def lookup_object(self, index: MetadataIndex) -> Any:
        """A part's values, or what is pickled of a state: a list of one module's, which is None."""
        if index.offset is None:
            return [None]
        if self._before is not None:
            self._before.untyped_storage().resize_(0)
        part = self._parts[MetadataIndex(index.fqn, index.offset)]
        self._before = self._value(part).view([*[1] * len(part.at), *part.inner])
        return self._before

    def _value(self, part: Part) -> Tensor:
        if not _is_stack(part.tensor.name):
            return self._weights.value(part.tensor)
        if self._whole is None or self._whole[0] != part.tensor.name:
            self._whole = None  # before the next is made
            self._whole = part.tensor.name, self._weights.value(part.tensor)
        return self._whole[1][part.at[-1]].clone()
