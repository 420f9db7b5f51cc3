"""A folder of Megatron-LM, or one checkpoint of it, read tensor by tensor without letting anything in it run."""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from io import BytesIO
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata
from torch.distributed.checkpoint.planner import ReadItem
from torch.distributed.checkpoint.planner_helpers import create_read_items_for_chunk_list

from framework.convert.hf_folder import read_json
from framework.convert.megatron.names import TRAINING, Source, canonical
from framework.convert.megatron.pickles import read_common, read_metadata
from framework.errors import UserError

TRACKER = "latest_checkpointed_iteration.txt"
FLOATS = {torch.float32, torch.bfloat16, torch.float16}


def find_checkpoint(folder: Path) -> Path:
    """The newest checkpoint of a folder that Megatron-LM saves into, or the folder if it is one itself."""
    if (folder / "metadata.json").is_file():
        return folder
    try:
        newest = (folder / TRACKER).read_text().strip()
    except (OSError, UnicodeDecodeError):
        raise UserError(f"{folder}: no {TRACKER} and no metadata.json; allowed: a folder that Megatron-LM saved into, "
                        "or a checkpoint of it") from None
    if newest != "release" and not (newest.isascii() and newest.isdigit() and len(newest) < 16):
        raise UserError(f"{folder / TRACKER}: {newest[:20]!r}; allowed: a number, or release")
    path = folder / (newest if newest == "release" else f"iter_{int(newest):07d}")
    if not (path / "metadata.json").is_file():
        raise UserError(f"{path}: no metadata.json; allowed: a checkpoint that was saved with --ckpt-format torch_dist")
    return path


class MegatronFolder:
    """arguments: Megatron-LM's, plain values alone; None where nobody kept them. shapes: of every tensor of the model,
    by the names of `tables`.

    Raises UserError, which names the file, for one that is missing, truncated, damaged or of another format.
    """

    def __init__(self, folder: Path) -> None:
        self.path = find_checkpoint(folder)
        backend = read_json(self.path / "metadata.json").get("sharded_backend")
        if backend != "torch_dist":
            raise UserError(f"{self.path / 'metadata.json'}: sharded_backend is {str(backend)[:20]!r}; allowed: "
                            "'torch_dist'")
        common = read_common(self.path / "common.pt")
        self.arguments: dict[str, Any] | None = common["args"]
        self.metadata = read_metadata(self.path / ".metadata")
        entries = self.metadata.state_dict_metadata
        self._require_possible()
        self._tensors = canonical({key: tuple(entry.size) for key, entry in entries.items()})
        self.shapes = {name: tensor.shape for name, tensor in self._tensors.items()}
        for key in {source.key for tensor in self._tensors.values() for source in tensor.sources.values()}:
            if (dtype := entries[key].properties.dtype) not in FLOATS:
                raise UserError(f"{self.path}: {key} is {dtype}; allowed: float32, bfloat16, float16")

    def tensor(self, name: str) -> Tensor:
        """One tensor, float32, by the names of `tables`."""
        found = self._tensors[name]
        experts = sorted({expert for expert, _ in found.sources})
        halves = sorted({half for _, half in found.sources})
        parts = [[self._part(found.sources[expert, half]) for half in halves] for expert in experts]
        joined = [each[0] if len(each) == 1 else torch.cat(each) for each in parts]
        return torch.stack(joined) if found.apart else joined[0]

    def file_of(self, name: str) -> Path:
        """Where a tensor stands, or all of it where there is none."""
        if name not in self._tensors:
            return self.path
        keys = {source.key for source in self._tensors[name].sources.values()}
        return self.path / min((place.relative_path for index, place in self.metadata.storage_data.items()
                                if index.fqn in keys), default=".metadata")

    def _require_possible(self) -> None:
        """No tensor has more numbers than all files have bytes: shapes can be believed before memory is taken."""
        most = sum(path.stat().st_size for path in self.path.glob("*.distcp"))
        for key, entry in self.metadata.state_dict_metadata.items():
            if not TRAINING.match(key) and prod(max(1, length) for length in entry.size) > most:
                raise UserError(f"{self.path}: {key} has shape {list(entry.size)[:8]}, and all files {most} bytes; "
                                "allowed: a whole checkpoint")

    def _part(self, source: Source) -> Tensor:
        entry = self.metadata.state_dict_metadata[source.key]
        offsets, sizes = [0] * len(entry.size), list(entry.size)
        if source.layer is not None:
            offsets[0], sizes[0] = source.layer, 1
        chunk = ChunkStorageMetadata(torch.Size(offsets), torch.Size(sizes))
        items = create_read_items_for_chunk_list(source.key, entry, [chunk])
        if sum(prod(item.lengths) for item in items) != prod(sizes):
            raise UserError(f"{self.path / '.metadata'}: parts of {source.key} are missing; allowed: a whole "
                            "checkpoint")
        wanted = torch.empty(sizes, dtype=entry.properties.dtype)
        for item in items:
            stored = _narrow(self._stored(item), item.storage_offsets, item.lengths)
            _narrow(wanted, item.dest_offsets, item.lengths).copy_(stored)
        return wanted.view(source.shape).to(torch.float32)

    def _stored(self, item: ReadItem) -> Tensor:
        """A part as it stands in a file. Its checksums are looked at, which torch's reader does not do."""
        key = item.storage_index.fqn
        place = self.metadata.storage_data.get(item.storage_index)
        if place is None:
            raise UserError(f"{self.path / '.metadata'}: no place of a part of {key}; allowed: a whole checkpoint")
        try:
            with (self.path / place.relative_path).open("rb") as file:
                file.seek(place.offset)
                content = BytesIO(file.read(place.length))
            if zipfile.ZipFile(content).testzip() is not None:
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


def _narrow(tensor: Tensor, offsets: Sequence[int], lengths: Sequence[int]) -> Tensor:
    """A box of a tensor, as a view."""
    for dim, (offset, length) in enumerate(zip(offsets, lengths, strict=True)):
        tensor = tensor.narrow(dim, offset, length)
    return tensor
