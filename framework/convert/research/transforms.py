"""Rearrangements that only these layouts have."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from framework.convert.transforms import Shapes


class Transposed:
    """Theirs has the last two dims the other way round."""

    def to_theirs(self, ours: list[Tensor]) -> list[Tensor]:
        return [tensor.transpose(-1, -2) for tensor in ours]

    def to_ours(self, theirs: list[Tensor], shapes: Shapes) -> list[Tensor]:
        return [tensor.transpose(-1, -2) for tensor in theirs]


@dataclass(frozen=True)
class Chunks:
    """One of ours is `count` of theirs, equal parts along the first dim."""

    count: int

    def to_theirs(self, ours: list[Tensor]) -> list[Tensor]:
        return list(ours[0].chunk(self.count))

    def to_ours(self, theirs: list[Tensor], shapes: Shapes) -> list[Tensor]:
        return [torch.cat(theirs)]


class Zeros:
    """Ours is zeros where theirs has nothing: a LayerNorm's bias, say, that it was built without."""

    def to_theirs(self, ours: list[Tensor]) -> list[Tensor]:
        return []

    def to_ours(self, theirs: list[Tensor], shapes: Shapes) -> list[Tensor]:
        return [torch.zeros(shape) for shape in shapes]


TRANSPOSED, ZEROS = Transposed(), Zeros()
