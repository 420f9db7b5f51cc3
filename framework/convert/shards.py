"""Tensors into safetensors files of limited size, one file in memory at a time."""

from __future__ import annotations

import json
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file

from framework.convert.weights import TheirTensor, Weights
from framework.errors import UserError

INDEX = "model.safetensors.index.json"
ONE = "model.safetensors"


def write_shards(weights: Weights, folder: Path, shard_bytes: int) -> list[str]:
    """Write all tensors, in their order; a file holds at most `shard_bytes`, or one tensor.

    Returns the files' names: one file has no index, several have one that says which holds which tensor.
    """
    parts = split(weights.tensors, shard_bytes)
    names = [f"model-{number:05}-of-{len(parts):05}.safetensors" for number in range(1, len(parts) + 1)]
    names = [ONE] if len(parts) == 1 else names
    for name, part in zip(names, parts, strict=True):
        tensors = {tensor.name: weights.value(tensor) for tensor in part}
        try:
            save_file(tensors, folder / name, metadata={"format": "pt"})
        except SafetensorError as error:
            raise UserError(f"{folder / name}: cannot be written ({error}); allowed: more room, or another place"
                            ) from None
        (folder / name).chmod(0o644)  # it is made for its owner alone
    if len(parts) > 1:
        index = {
            "metadata": {"total_size": sum(tensor.num_bytes for tensor in weights.tensors)},
            "weight_map": {tensor.name: name for name, part in zip(names, parts, strict=True) for tensor in part},
        }
        (folder / INDEX).write_text(json.dumps(index, indent=1) + "\n")
    return names


def split(tensors: list[TheirTensor], shard_bytes: int) -> list[list[TheirTensor]]:
    """The tensors of each file."""
    parts: list[list[TheirTensor]] = [[]]
    size = 0
    for tensor in tensors:
        if parts[-1] and size + tensor.num_bytes > shard_bytes:
            parts.append([])
            size = 0
        parts[-1].append(tensor)
        size += tensor.num_bytes
    return parts
