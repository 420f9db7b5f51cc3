"""A folder of Megatron-LM, or one checkpoint of it, read tensor by tensor without letting anything in it run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from framework.convert.distributed_folder import DistributedFolder
from framework.convert.hf_folder import read_json
from framework.convert.megatron.common_file import read_common
from framework.convert.megatron.names import TRAINING, Source, canonical
from framework.errors import UserError

TRACKER = "latest_checkpointed_iteration.txt"


def find_checkpoint(folder: Path) -> Path:
    """The newest checkpoint of a folder that Megatron-LM saves into, or the folder if it is one itself."""
    if (folder / "metadata.json").is_file():
        return folder
    if not folder.is_dir():
        raise UserError(f"{folder}: {'a file' if folder.exists() else 'missing'}; allowed: a folder that Megatron-LM "
                        "saved into, or a checkpoint of it")
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
        self._stored = DistributedFolder(self.path, lambda key: TRAINING.match(key) is None)
        self._tensors = canonical(self._stored.shapes)
        self.shapes = {name: tensor.shape for name, tensor in self._tensors.items()}

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
        return min((path for key in keys for path in self._stored.files_of(key)), default=self.path / ".metadata")

    def _part(self, source: Source) -> Tensor:
        sizes = list(self._stored.shapes[source.key])
        offsets = [0] * len(sizes)
        if source.layer is not None:
            offsets[0], sizes[0] = source.layer, 1
        return self._stored.box(source.key, offsets, sizes).view(source.shape)
