"""A torch.distributed.checkpoint that others wrote, read part by part without letting anything in it run."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from io import BytesIO
from math import prod
from pathlib import Path

import torch
from torch import Tensor
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, TensorStorageMetadata
from torch.distributed.checkpoint.planner import ReadItem
from torch.distributed.checkpoint.planner_helpers import create_read_items_for_chunk_list

from framework.convert.foreign_metadata import read_metadata
from framework.errors import UserError

FLOATS = {torch.float32, torch.bfloat16, torch.float16}


class DistributedFolder:
    """Its tensors of floats, by key. wanted: which keys are looked at. shapes: of these.

    Raises UserError, which names the file, for one that is missing, truncated or damaged, for a shape that all files
    are too small for, and for a tensor of no floats.
    """

    def __init__(self, path: Path, wanted: Callable[[str], bool]) -> None:
        self.path = path
        found = read_metadata(path / ".metadata")
        self._places = found.storage_data
        self._entries = {key: _once(entry) for key, entry in found.state_dict_metadata.items() if wanted(key)}
        self.shapes = {key: tuple(entry.size) for key, entry in self._entries.items()}
        most = sum(each.stat().st_size for each in path.glob("*.distcp"))
        for key, entry in self._entries.items():
            # Shapes can be believed before memory is taken.
            if prod(max(1, length) for length in entry.size) > most:
                raise UserError(f"{path}: {key} has shape {list(entry.size)[:8]}, and all files {most} bytes; allowed: "
                                "a whole checkpoint")
            if (dtype := entry.properties.dtype) not in FLOATS:
                raise UserError(f"{path}: {key} is {dtype}; allowed: float32, bfloat16, float16")

    def box(self, key: str, offsets: Sequence[int], sizes: Sequence[int]) -> Tensor:
        """A part of a tensor, float32, put together of those that are stored."""
        entry = self._entries[key]
        wanted = ChunkStorageMetadata(torch.Size(offsets), torch.Size(sizes))
        items = create_read_items_for_chunk_list(key, entry, [wanted])
        if sum(prod(item.lengths) for item in items) != prod(sizes):
            raise UserError(f"{self.path / '.metadata'}: parts of {key} are missing; allowed: a whole checkpoint")
        found = torch.empty(tuple(sizes))
        for item in items:
            stored = _narrow(self._stored(item), item.storage_offsets, item.lengths)
            _narrow(found, item.dest_offsets, item.lengths).copy_(stored)
        return found

    def files_of(self, key: str) -> list[Path]:
        """Where parts of a tensor stand."""
        return sorted({self.path / place.relative_path for index, place in self._places.items() if index.fqn == key})

    def _stored(self, item: ReadItem) -> Tensor:
        """A part as it stands in a file. Its checksums are looked at, which torch's reader does not do."""
        key = item.storage_index.fqn
        place = self._places.get(item.storage_index)
        if place is None:
            raise UserError(f"{self.path / '.metadata'}: no place of a part of {key}; allowed: a whole checkpoint")
        try:
            with (self.path / place.relative_path).open("rb") as file:
                file.seek(place.offset)
                content = BytesIO(file.read(place.length))
            with zipfile.ZipFile(content) as archive:
                if archive.testzip() is not None:
                    raise ValueError("checksum")
            content.seek(0)
            stored = torch.load(content, map_location="cpu", weights_only=True)
            if stored.dtype not in FLOATS or any(start + length > size for start, length, size in zip(
                    item.storage_offsets, item.lengths, stored.shape, strict=True)):
                raise ValueError("shape")
        except Exception as error:  # whatever a damaged file makes its readers raise
            raise UserError(f"{self.path / place.relative_path}: missing or damaged: {key} cannot be read "
                            f"({type(error).__name__})") from None
        return stored


def _once(entry: TensorStorageMetadata) -> TensorStorageMetadata:
    """Without a second mention of a part that several ranks held."""
    return replace(entry, chunks=list({tuple(chunk.offsets): chunk for chunk in entry.chunks}.values()))


def _narrow(tensor: Tensor, offsets: Sequence[int], lengths: Sequence[int]) -> Tensor:
    """A box of a tensor, as a view."""
    for dim, (offset, length) in enumerate(zip(offsets, lengths, strict=True)):
        tensor = tensor.narrow(dim, offset, length)
    return tensor
