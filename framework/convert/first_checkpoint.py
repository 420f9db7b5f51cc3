"""The first checkpoint of a run whose weights come from elsewhere, written tensor by tensor."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.metadata import MetadataIndex

from framework.allocator import give_back_large_blocks
from framework.recipe import Architecture, parameters
from framework.training.checkpoint import Manifest, checkpoint_folder
from framework.training.checkpoint.manifest import file_facts, write_manifest
from framework.training.trainer import Progress


def write_first_checkpoint(
    root: Path, architecture: Architecture, shapes: dict[str, tuple[int, ...]], value: Callable[[str], Tensor]
) -> Path:
    """Write `root/step_0` as training does, with an optimizer that has not moved; returns its folder.

    shapes: of the model's tensors, in the order in which `value` is asked for them, float32. No more than one of them
    is held at a time, which `Checkpointer`, made to save what is in memory, cannot promise. Whoever makes the run
    folder sees to it that it is whole or not there.
    """
    give_back_large_blocks()
    tensors = {f"model.{name}": torch.empty(shape, device="meta") for name, shape in shapes.items()}
    for parameter in parameters(architecture):
        for key, shape in (("step", ()), ("exp_avg", parameter.shape), ("exp_avg_sq", parameter.shape)):
            tensors[f"optim.{parameter.name}.{key}"] = torch.empty(shape, device="meta")
    folder = checkpoint_folder(root, 0)
    state = folder / "state"
    state.mkdir(parents=True)
    writer = dcp.FileSystemWriter(state, single_file_per_rank=True, sync_files=True, per_thread_copy_ahead=0)
    dcp.save(tensors, storage_writer=writer, planner=_Lazy(value), no_dist=True)
    files = {f"state/{path.name}": file_facts(path) for path in sorted(state.iterdir())}
    write_manifest(folder, Manifest(0, dataclasses.asdict(Progress()), files))
    return folder


class _Lazy(dcp.DefaultSavePlanner):
    """Plans with meta tensors, and makes each tensor when it is its turn to be written.

    The writer keeps what it has written until its file is closed; so the memory of the one before is let go here.
    """

    def __init__(self, value: Callable[[str], Tensor]) -> None:
        super().__init__()
        self._value = value
        self._before: Tensor | None = None

    def lookup_object(self, index: MetadataIndex) -> Tensor:
        if self._before is not None:
            self._before.untyped_storage().resize_(0)
        tensor = torch.zeros(self.state_dict[index.fqn].shape)
        if not index.fqn.startswith("optim."):
            value = self._value(index.fqn.removeprefix("model."))
            assert value.shape == tensor.shape and value.dtype == torch.float32, index.fqn
            tensor.copy_(value)
        self._before = tensor
        return tensor
