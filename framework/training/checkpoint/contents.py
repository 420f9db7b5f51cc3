"""What a checkpoint holds, and its weights as whole tensors in files that other programs read."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from framework.errors import UserError
from framework.files import atomic_folder
from framework.training.checkpoint.safe_reader import SafeReader
from framework.training.checkpoint.storage import load
from framework.training.peers import Peers

FILE_BYTES = 4 * 2**30
"""Bytes of one file of whole weights, and so of the memory that consolidating takes."""


@dataclass(frozen=True)
class StoredTensor:
    """One tensor of a checkpoint. shape: of the whole tensor. num_chunks: parts that ranks wrote."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    num_chunks: int

    @property
    def num_bytes(self) -> int:
        """Of the whole tensor."""
        return torch.Size(self.shape).numel() * self.dtype.itemsize


def stored_tensors(checkpoint: Path) -> list[StoredTensor]:
    """The tensors of a checkpoint by name, without reading them. Raises DamagedCheckpoint."""
    entries = SafeReader(checkpoint / "state").read_metadata().state_dict_metadata
    return [
        StoredTensor(name, tuple(entry.size), entry.properties.dtype, len(entry.chunks))
        for name, entry in sorted(entries.items()) if isinstance(entry, TensorStorageMetadata)
    ]


def consolidate(checkpoint: Path, out: Path, file_bytes: int = FILE_BYTES) -> list[Path]:
    """Write a checkpoint's weights as whole tensors, under their qualified names, into safetensors files.

    out: a new folder. It gets `model-00001-of-0000N.safetensors` and `model.safetensors.index.json`, which says which
    file holds which weight; optimizer state stays behind. Files hold at most `file_bytes` or one tensor each. The
    checkpoint must have been verified. Raises UserError where `out` exists, DamagedCheckpoint as `load` does.
    """
    if out.exists():
        raise UserError(f"{out}: exists already; allowed: a new folder")
    weights = [tensor for tensor in stored_tensors(checkpoint) if tensor.name.startswith("model.")]
    parts = list(_parts(weights, file_bytes))
    names = [f"model-{number:05}-of-{len(parts):05}.safetensors" for number in range(1, len(parts) + 1)]
    index = {
        "metadata": {"total_size": sum(tensor.num_bytes for tensor in weights)},
        "weight_map": {_bare(tensor.name): name for name, part in zip(names, parts, strict=True) for tensor in part},
    }
    with atomic_folder(out) as folder:
        for name, part in zip(names, parts, strict=True):
            whole = {tensor.name: torch.empty(tensor.shape, dtype=tensor.dtype) for tensor in part}
            load(checkpoint, whole, Peers())
            save_file({_bare(key): value for key, value in whole.items()}, folder / name, metadata={"format": "pt"})
            (folder / name).chmod(0o644)  # it is made for its owner alone
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=1) + "\n")
    return [out / name for name in names]


def _parts(tensors: list[StoredTensor], file_bytes: int) -> Iterator[list[StoredTensor]]:
    part: list[StoredTensor] = []
    for tensor in tensors:
        if part and sum(member.num_bytes for member in part) + tensor.num_bytes > file_bytes:
            yield part
            part = []
        part.append(tensor)
    if part:
        yield part


def _bare(name: str) -> str:
    return name.removeprefix("model.")
