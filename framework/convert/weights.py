"""A run's weights as the tensors of a target, one piece at a time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from framework.allocator import give_back_large_blocks
from framework.convert.factors import factors
from framework.convert.table import Piece, our_tensors
from framework.convert.transforms import their_shapes

if TYPE_CHECKING:
    from framework.convert.target import Target
    from framework.recipe import Architecture, Loaded
    from framework.surgery.reader import SourceReader

KEPT_FLOAT32 = ("dynamics.A_log", "dynamics.D", "dynamics.dt_bias", "selection_bias_E")
"""Tensors that no lower precision is written for: decays, skips, time steps, and biases of selection."""


@dataclass(frozen=True)
class TheirTensor:
    """One tensor of a target: made of a piece, of which it is number `index`."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    piece: Piece
    index: int

    @property
    def num_bytes(self) -> int:
        return torch.Size(self.shape).numel() * self.dtype.itemsize


class Weights:
    """What a target's tensors are, and their values, read from a checkpoint when they are asked for.

    architecture: the run's, or one with further layers, whose weights are zeros. dtype: of what is written. Nothing is
    kept but the last piece.
    """

    def __init__(
        self, loaded: Loaded, architecture: Architecture, target: Target, reader: SourceReader, dtype: torch.dtype
    ) -> None:
        give_back_large_blocks()
        self.reader, self.dtype = reader, dtype
        self.factors = factors(loaded, target.holds_multipliers)
        shapes, present = our_tensors(architecture), our_tensors(loaded.architecture)
        self.added = {name: shape for name, shape in shapes.items() if name not in present}
        self.tensors = list(_tensors(target.pieces(architecture), shapes, dtype))
        self._last: tuple[Piece, list[Tensor]] | None = None

    def value(self, tensor: TheirTensor) -> Tensor:
        """Contiguous, on the CPU, in storage of its own."""
        if self._last is None or self._last[0] is not tensor.piece:
            self._last = None  # before the next is read
            ours = [self._ours(name) for name in tensor.piece.ours]
            self._last = tensor.piece, tensor.piece.transform.to_theirs(ours)
        value = self._last[1][tensor.index]
        return torch.empty(tensor.shape, dtype=tensor.dtype).copy_(value)

    def _ours(self, name: str) -> Tensor:
        if name in self.added:
            return torch.zeros(self.added[name])
        # The reader keeps one tensor: pieces of several need copies.
        whole = self.reader.whole(f"model.{name}")
        return whole * self.factors[name] if name in self.factors else whole.clone()


def _tensors(
    found: list[Piece], shapes: dict[str, tuple[int, ...]], dtype: torch.dtype
) -> Iterator[TheirTensor]:
    for piece in found:
        kept = any(name.endswith(KEPT_FLOAT32) for name in piece.ours)
        theirs = their_shapes(piece.transform, [shapes[name] for name in piece.ours])
        for index, (name, shape) in enumerate(zip(piece.theirs, theirs, strict=True)):
            yield TheirTensor(name, shape, torch.float32 if kept else dtype, piece, index)
