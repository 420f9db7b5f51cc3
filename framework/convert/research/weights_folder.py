"""A folder of torch.distributed.checkpoint that sharded training wrote."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from framework.convert.distributed_folder import DistributedFolder
from framework.convert.research.weights_file import bare_names
from framework.errors import UserError


class WeightsFolder:
    """shapes: of every tensor whose key begins with `prefix`, by the rest of its key.

    Raises UserError as `DistributedFolder` does, and where there are no such tensors.
    """

    def __init__(self, path: Path, prefix: str) -> None:
        self.path = path
        self._stored = DistributedFolder(path, lambda key: key.startswith(prefix))
        keys = {key.removeprefix(prefix): key for key in self._stored.shapes}
        if not keys:
            raise UserError(f"{path}: no {prefix}* in it; allowed: a checkpoint of sharded training")
        self._keys = bare_names(path, keys)
        self.shapes = {name: self._stored.shapes[key] for name, key in self._keys.items()}

    def tensor(self, name: str) -> Tensor:
        """One tensor, float32."""
        shape = self.shapes[name]
        return self._stored.box(self._keys[name], [0] * len(shape), shape)

    def file_of(self, name: str) -> Path:
        """Where all are listed."""
        return self.path / ".metadata"
