"""How tensors of ours become theirs, and exactly back: the few rearrangements that the tables are made of.

Each takes and gives lists. Both directions only move numbers (or multiply by a power of two), so that a round trip is
bit-equal. On meta tensors they tell shapes without reading anything.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Protocol

import torch
from torch import Tensor

Shapes = Sequence[tuple[int, ...]]


class Transform(Protocol):
    """to_ours(to_theirs(ours), shapes of ours) gives ours."""

    def to_theirs(self, ours: list[Tensor]) -> list[Tensor]: ...

    def to_ours(self, theirs: list[Tensor], shapes: Shapes) -> list[Tensor]: ...


class Same:
    """The same tensor under another name."""

    def to_theirs(self, ours: list[Tensor]) -> list[Tensor]:
        return ours

    def to_ours(self, theirs: list[Tensor], shapes: Shapes) -> list[Tensor]:
        return theirs


@dataclass(frozen=True)
class Concat:
    """Several of ours stand one after the other, along `dim`, in one of theirs."""

    dim: int = 0

    def to_theirs(self, ours: list[Tensor]) -> list[Tensor]:
        return [torch.cat(ours, self.dim)]

    def to_ours(self, theirs: list[Tensor], shapes: Shapes) -> list[Tensor]:
        return list(theirs[0].split([shape[self.dim] for shape in shapes], self.dim))


@dataclass(frozen=True)
class GroupedHeads:
    """Queries, keys and values in one: of each group its query heads, then its key head, then its value head.

    Ours are q [H * P, ...], k and v [G * P, ...]; theirs is [G * (H / G + 2) * P, ...], P being `head_dim`.
    """

    head_dim: int

    def to_theirs(self, ours: list[Tensor]) -> list[Tensor]:
        num_groups = ours[1].shape[0] // self.head_dim
        return [torch.cat([tensor.unflatten(0, (num_groups, -1)) for tensor in ours], 1).flatten(0, 1)]

    def to_ours(self, theirs: list[Tensor], shapes: Shapes) -> list[Tensor]:
        num_groups = shapes[1][0] // self.head_dim
        grouped = theirs[0].unflatten(0, (num_groups, -1))
        parts = grouped.split([shape[0] // num_groups for shape in shapes], 1)
        return [part.flatten(0, 1) for part in parts]


class Unstack:
    """A stack of ours [E, ...] is E tensors of theirs."""

    def to_theirs(self, ours: list[Tensor]) -> list[Tensor]:
        return list(ours[0].unbind(0))

    def to_ours(self, theirs: list[Tensor], shapes: Shapes) -> list[Tensor]:
        return [torch.stack(theirs)]


@dataclass(frozen=True)
class Unsqueeze:
    """Theirs has one more dim, of size 1."""

    dim: int

    def to_theirs(self, ours: list[Tensor]) -> list[Tensor]:
        return [ours[0].unsqueeze(self.dim)]

    def to_ours(self, theirs: list[Tensor], shapes: Shapes) -> list[Tensor]:
        return [theirs[0].squeeze(self.dim)]


@dataclass(frozen=True)
class Times:
    """Theirs is ours times a power of two."""

    factor: float

    def to_theirs(self, ours: list[Tensor]) -> list[Tensor]:
        return [ours[0] * self.factor]

    def to_ours(self, theirs: list[Tensor], shapes: Shapes) -> list[Tensor]:
        return [theirs[0] / self.factor]


@dataclass(frozen=True)
class Chain:
    """One transform, then another on what it gives."""

    first: Transform
    second: Transform

    def to_theirs(self, ours: list[Tensor]) -> list[Tensor]:
        return self.second.to_theirs(self.first.to_theirs(ours))

    def to_ours(self, theirs: list[Tensor], shapes: Shapes) -> list[Tensor]:
        between = their_shapes(self.first, shapes)
        return self.first.to_ours(self.second.to_ours(theirs, between), shapes)


@dataclass(frozen=True)
class Constant:
    """Theirs holds one value where ours has nothing; any other value is not ours to read."""

    shape: tuple[int, ...]
    value: float = 0.0

    def to_theirs(self, ours: list[Tensor]) -> list[Tensor]:
        return [torch.full(self.shape, self.value)]

    def to_ours(self, theirs: list[Tensor], shapes: Shapes) -> list[Tensor]:
        if not bool((theirs[0] == self.value).all()):
            raise ValueError(f"holds more than {self.value:g}, which this model has no place for")
        return []


SAME, UNSTACK = Same(), Unstack()


def their_shapes(transform: Transform, shapes: Shapes) -> list[tuple[int, ...]]:
    """Shapes of theirs, given those of ours. Raises ValueError where no tensor is so large."""
    if too_large := [shape for shape in shapes if prod(shape) >= 2**60]:
        raise ValueError(f"shape {list(too_large[0])} is that of no tensor")
    ours = [torch.empty(shape, device="meta") for shape in shapes]
    return [tuple(tensor.shape) for tensor in transform.to_theirs(ours)]
