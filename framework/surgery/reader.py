"""The dense run's checkpoint, read piece by piece."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import Metadata

from framework.errors import UserError
from framework.training.checkpoint import DamagedCheckpoint, load, stored_tensors
from framework.training.checkpoint.safe_reader import SafeReader
from framework.training.checkpoint.storage import first_cause
from framework.training.peers import Peers


class SourceReader:
    """Reads tensors of a checkpoint: one whole at a time, or the parts that a rank holds.

    Its files must have been verified. Raises UserError where a tensor is missing or of another shape.
    """

    def __init__(self, checkpoint: Path, peers: Peers) -> None:
        self.checkpoint, self.peers = checkpoint, peers
        self.stored = {tensor.name: tensor for tensor in stored_tensors(checkpoint)}
        self._reader = _Reader(checkpoint / "state")
        self._last: tuple[str, Tensor] | None = None

    def parts(self, tensors: dict[str, Tensor]) -> None:
        """Fill tensors in place (DTensors of any layout, or plain), of which a rank reads what it holds. Collective."""
        self._require(tensors)
        try:
            load(self.checkpoint, tensors, self.peers)
        except DamagedCheckpoint as error:
            raise UserError(f"{self.checkpoint}: {error}; allowed: a checkpoint of the run's recipe") from None

    def whole(self, name: str) -> Tensor:
        """One whole tensor, on the CPU, for this rank alone. It is kept until another is asked for."""
        if self._last is None or self._last[0] != name:
            self._last = None  # before the next is allocated
            self._require([name])
            tensor = torch.empty(self.stored[name].shape, dtype=self.stored[name].dtype)
            try:
                dcp.load({name: tensor}, storage_reader=self._reader, no_dist=True)
            except CheckpointException as error:
                raise UserError(f"{self.checkpoint}: {name} cannot be read: {first_cause(error)}") from None
            self._last = name, tensor
        return self._last[1]

    def _require(self, names: Any) -> None:
        if missing := [name for name in names if name not in self.stored]:
            raise UserError(f"{self.checkpoint}: has no {missing[0]}; allowed: a checkpoint of the run's recipe")


class _Reader(SafeReader):
    """Reads the checkpoint's metadata once, however many tensors follow."""

    _metadata: Metadata | None = None

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        if self._metadata is None:
            self._metadata = super().read_metadata(*args, **kwargs)
        return self._metadata
