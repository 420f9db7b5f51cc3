"""Tensors of ours, made of the tensors of another layout, one piece at a time."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from torch import Tensor

from framework.convert.table import Piece, our_tensors
from framework.convert.transforms import their_shapes
from framework.errors import UserError
from framework.recipe import Architecture

GIVEN_NAMES = 3
"""Tensors of a kind that a message names."""


class Given(Protocol):
    """Weights that come from elsewhere. shapes: of every tensor, by name."""

    path: Path
    shapes: dict[str, tuple[int, ...]]

    def tensor(self, name: str) -> Tensor:
        """One tensor, float32."""

    def file_of(self, name: str) -> Path:
        """Where a tensor stands, or should."""


@dataclass(frozen=True)
class _Made:
    piece: Piece
    index: int


class OurWeights:
    """What a model's tensors are made of, each read when it is asked for; nothing is kept but the last piece's.

    found: pieces of the whole model. says: what told the architecture, as messages name it. recomputed: endings of the
    names of buffers that models make anew. Raises UserError that names the tensor where one of theirs is missing,
    unexpected or of another shape.
    """

    def __init__(
        self, given: Given, found: list[Piece], architecture: Architecture, says: str,
        recomputed: tuple[str, ...] = (),
    ) -> None:
        self.given = given
        sizes = our_tensors(architecture)
        self.made = {name: _Made(piece, index) for piece in found for index, name in enumerate(piece.ours)}
        self.shapes = {name: sizes[name] for name in self.made}
        try:
            shapes = [their_shapes(piece.transform, [sizes[name] for name in piece.ours]) for piece in found]
        except ValueError as error:
            raise UserError(f"{given.path}: of {says}: {error}") from None
        wanted = {name: shape for piece, theirs in zip(found, shapes, strict=True)
                  for name, shape in zip(piece.theirs, theirs, strict=True)}
        _compare(given, wanted, says, recomputed)
        for piece in found:
            if not piece.ours:
                self._read(piece)
        self._last: tuple[Piece, list[Tensor]] | None = None

    def value(self, name: str) -> Tensor:
        """One tensor of ours, float32."""
        made = self.made[name]
        if self._last is None or self._last[0] is not made.piece:
            self._last = None  # before the next is read
            self._last = made.piece, self._read(made.piece)
        return self._last[1][made.index]

    def _read(self, piece: Piece) -> list[Tensor]:
        shapes = [self.shapes[name] for name in piece.ours]
        try:
            return piece.transform.to_ours([self.given.tensor(name) for name in piece.theirs], shapes)
        except ValueError as error:
            if isinstance(error, UserError):
                raise
            raise UserError(f"{self.given.file_of(piece.theirs[0])}: {piece.theirs[0]} {error}") from None


def _compare(
    given: Given, wanted: dict[str, tuple[int, ...]], says: str, recomputed: tuple[str, ...]
) -> None:
    """Every tensor that the table names, of its shape, and no other."""
    if missing := [name for name in wanted if name not in given.shapes]:
        raise UserError(f"{given.file_of('')}: {_told(missing)} missing; allowed: every tensor that {says} needs")
    if unexpected := [name for name in given.shapes if name not in wanted and not name.endswith(recomputed)]:
        raise UserError(f"{given.file_of(unexpected[0])}: {_told(unexpected)} unexpected; allowed: the tensors that "
                        f"{says} needs, no more")
    for name, shape in wanted.items():
        if given.shapes[name] != shape:
            raise UserError(f"{given.file_of(name)}: {name} has shape {list(given.shapes[name])}; allowed: "
                            f"{list(shape)}, which {says} says")


def _told(names: list[str]) -> str:
    more = f" and {len(names) - GIVEN_NAMES} more" if len(names) > GIVEN_NAMES else ""
    return f"{', '.join(names[:GIVEN_NAMES])}{more} {'is' if len(names) == 1 else 'are'}"
