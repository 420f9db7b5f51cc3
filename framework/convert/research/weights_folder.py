"""A folder of torch.distributed.checkpoint that sharded training wrote, read without letting anything in it run."""

from __future__ import annotations

import io
import zipfile
from math import prod
from pathlib import Path

import torch
from torch import Tensor
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, MetadataIndex

from framework.convert.megatron.pickles import read_metadata
from framework.convert.research.weights_file import FLOATS, bare_names
from framework.errors import UserError


class WeightsFolder:
    """shapes: of every tensor whose key begins with `prefix`, by the rest of its key.

    Raises UserError, which names the file, for one that is missing, truncated or damaged, and for no such tensors.
    """

    def __init__(self, path: Path, prefix: str) -> None:
        self.path = path
        self._metadata = read_metadata(path / ".metadata")
        entries = self._metadata.state_dict_metadata
        keys = {key.removeprefix(prefix): key for key in entries if key.startswith(prefix)}
        if not keys:
            raise UserError(f"{path}: no {prefix}* in it; allowed: a checkpoint of sharded training")
        self._keys = bare_names(path, keys)
        self.shapes = {name: tuple(entries[key].size) for name, key in self._keys.items()}
        most = sum(each.stat().st_size for each in path.glob("*.distcp"))
        for name, shape in self.shapes.items():
            if prod(shape) > most:
                raise UserError(f"{path}: {name} has shape {list(shape)[:8]}, and all files {most} bytes; allowed: a "
                                "whole checkpoint")

    def tensor(self, name: str) -> Tensor:
        """One tensor, float32, put together of its parts."""
        key = self._keys[name]
        entry = self._metadata.state_dict_metadata[key]
        if entry.properties.dtype not in FLOATS:
            raise UserError(f"{self.path}: {name} is {entry.properties.dtype}; allowed: float32, bfloat16, float16")
        whole, filled = torch.empty(tuple(entry.size)), 0
        for part in {tuple(part.offsets): part for part in entry.chunks}.values():
            filled += prod(part.sizes)
            self._read(key, part, whole)
        if filled != whole.numel():
            raise UserError(f"{self.path}: parts of {name} are missing; allowed: a whole checkpoint")
        return whole

    def file_of(self, name: str) -> Path:
        """Where all are listed."""
        return self.path / ".metadata"

    def _read(self, key: str, part: ChunkStorageMetadata, whole: Tensor) -> None:
        """Put one part where it belongs; each is an archive of torch.save with checksums."""
        place = self._metadata.storage_data.get(MetadataIndex(key, part.offsets))
        if place is None:
            raise UserError(f"{self.path / '.metadata'}: tells no place of {key}; allowed: a whole checkpoint")
        file = self.path / place.relative_path
        try:
            with file.open("rb") as stream:
                stream.seek(place.offset)
                content = io.BytesIO(stream.read(place.length))
            with zipfile.ZipFile(content) as archive:
                if (wrong := archive.testzip()) is not None:
                    raise ValueError(f"{wrong} is not what was written")
            content.seek(0)
            tensor = torch.load(content, map_location="cpu", weights_only=True)
            target = whole
            for dim, (offset, length) in enumerate(zip(part.offsets, part.sizes, strict=True)):
                target = target.narrow(dim, offset, length)
            if tensor.shape != target.shape:
                raise ValueError("another shape")
            target.copy_(tensor)
        except Exception as error:  # whatever a damaged file makes its readers raise
            raise UserError(f"{file}: missing or damaged: {key} cannot be read ({type(error).__name__})") from None
