"""What a layout of research code is told in: where its tensors stand, and which of ours they are."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from framework.convert.research.transforms import ZEROS
from framework.convert.table import Piece, our_tensors
from framework.convert.transforms import SAME, Constant, Transform
from framework.errors import UserError

if TYPE_CHECKING:
    from framework.recipe import Architecture
    from framework.recipe.architecture import Settings

Shape = tuple[int, ...]
Shapes = Mapping[str, Shape]


@dataclass(frozen=True)
class Link:
    """Tensors of a sublayer of ours, and theirs within its block, that hold the same numbers.

    transform: of the sublayer's settings.
    """

    ours: tuple[str, ...]
    theirs: tuple[str, ...]
    transform: Callable[[Settings], Transform]


Alternatives = tuple[Link, ...]
"""Ways in which their code kept the same tensors; a block has one of them."""


def link(ours: str, theirs: str, transform: Transform | Callable[[Settings], Transform] = SAME) -> Link:
    """Names are separated by spaces."""
    made = transform if callable(transform) else lambda settings: transform
    return Link(tuple(ours.split()), tuple(theirs.split()), made)


def one(ours: str, theirs: str, transform: Transform | Callable[[Settings], Transform] = SAME) -> Alternatives:
    """Only one way."""
    return (link(ours, theirs, transform),)


@dataclass(frozen=True)
class Block:
    """A sublayer of theirs. kind: ours. norm, body: what the names of its norm's and its own tensors begin with."""

    kind: str
    norm: str
    body: str

    def own(self, shapes: Shapes) -> dict[str, Shape]:
        """Shapes of its tensors, by the rest of their names."""
        return {name.removeprefix(self.body): shape for name, shape in shapes.items() if name.startswith(self.body)}


@dataclass(frozen=True)
class Parts:
    """A whole model of theirs: the names of its matrices at the ends, what its last norm's begin with, its blocks."""

    embedding: str
    blocks: tuple[Block, ...]
    last_norm: str
    unembedding: str


@dataclass(frozen=True)
class Layout:
    """One research code.

    find: parts of a model, from the shapes of its tensors. sizes: by kind, fields of the recipe's model section that
    the shapes of a block tell, given the heads if they are known. head_dim: of attention, if a block's shapes tell it.
    table: by kind. zeros: by kind, biases that ours has no place for, which may be there if they are zeros. fixed: by
    section (attention, ffn, moe, mamba), fields of which every model of this code has one value. usual: likewise, but
    another value can be stated. asked: by section, fields that neither names nor shapes tell, and what they are.
    layernorm_eps: where the code leaves no choice.
    """

    name: str
    find: Callable[[Shapes], Parts]
    sizes: Mapping[str, Callable[[Shapes, int | None], dict[str, Any]]]
    table: Mapping[str, Sequence[Alternatives]]
    fixed: Mapping[str, Mapping[str, Any]]
    asked: Mapping[str, Mapping[str, str]]
    zeros: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    usual: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    layernorm_eps: float | None = None

    def pieces(self, parts: Parts, shapes: Shapes, architecture: Architecture) -> list[Piece]:
        """Theirs beside ours, of the whole model. Raises UserError for one of ours that nothing of theirs makes."""
        present = our_tensors(architecture)
        found = [Piece(("embedding.weight",), (parts.embedding,), SAME)]
        for index, (block, sublayer) in enumerate(zip(parts.blocks, architecture.sublayers(), strict=True)):
            before = f"layers.{index}."
            found += norm_pieces(f"{before}norm", block.norm, shapes, present)
            for name in (f"{block.body}{bias}" for bias in self.zeros.get(block.kind, ())):
                if name in shapes:
                    found.append(Piece((), (name,), Constant(shapes[name])))
            for alternatives in self.table[block.kind]:
                fitting = [each for each in alternatives if present.keys() >= {before + name for name in each.ours}]
                if fitting:
                    chosen = _chosen(fitting, block, shapes)
                    found.append(Piece(tuple(before + name for name in chosen.ours),
                                       tuple(block.body + name for name in chosen.theirs),
                                       chosen.transform(sublayer.settings)))
        found += norm_pieces("final_norm", parts.last_norm, shapes, present)
        if not architecture.model.tie_embeddings:
            found.append(Piece(("unembedding.weight",), (parts.unembedding,), SAME))
        made = [name for piece in found for name in piece.ours]
        if wrong := [name for name in present if made.count(name) != 1]:
            raise UserError(f"nothing in it is {wrong[0]}; allowed: blocks that are all alike")
        return found


def _chosen(fitting: list[Link], block: Block, shapes: Shapes) -> Link:
    """The one that the block has, or has most of."""
    return max(reversed(fitting), key=lambda each: sum(block.body + name in shapes for name in each.theirs)
               / len(each.theirs))


def norm_pieces(ours: str, theirs: str, shapes: Shapes, present: Mapping[str, Shape]) -> list[Piece]:
    """A norm: `weight` and maybe `bias` of PyTorch's classes, or `g` and `b` of a class of their own.

    A bias that ours has no place for must be zeros; one that theirs was built without is zeros.
    """
    gain, bias = (f"{theirs}g", f"{theirs}b") if f"{theirs}g" in shapes else (f"{theirs}weight", f"{theirs}bias")
    found = [Piece((f"{ours}.weight",), (gain,), SAME)]
    if f"{ours}.bias" in present:
        found.append(Piece((f"{ours}.bias",), (bias,), SAME) if bias in shapes else Piece((f"{ours}.bias",), (), ZEROS))
    elif bias in shapes:
        found.append(Piece((), (bias,), Constant(shapes[bias])))
    return found
