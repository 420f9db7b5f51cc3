"""The names of a whole model, theirs beside ours, from an architecture's table."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from framework.convert.transforms import SAME, Constant, Transform
from framework.recipe import parameters

if TYPE_CHECKING:
    from framework.recipe import Architecture, Model
    from framework.recipe.architecture import Settings


@dataclass(frozen=True)
class Row:
    """One or several tensors of a sublayer of ours (`block.q.weight`), and the name of theirs within its layer.

    It holds where the model has all of ours, and `when` of the sublayer's settings. `{expert}` in theirs stands for
    every expert of the sublayer.
    """

    ours: tuple[str, ...]
    theirs: str
    transform: Transform = SAME
    when: Callable[[Settings], bool] = lambda settings: True


@dataclass(frozen=True)
class Filler:
    """A tensor of theirs that holds one value where the model has nothing for it.

    shape: from the model's section and the sublayer's settings; None: not in this sublayer.
    """

    theirs: str
    shape: Callable[[Model, Settings], tuple[int, ...] | None]
    value: float = 0.0


Table = Mapping[str, Sequence[Row | Filler]]
"""By kind of sublayer (attention, ffn, moe, mamba1, mamba2), and `model` for what stands outside of layers."""


@dataclass(frozen=True)
class Piece:
    """Tensors of ours and theirs that hold the same numbers, under their full names."""

    ours: tuple[str, ...]
    theirs: tuple[str, ...]
    transform: Transform


def row(ours: str, theirs: str, transform: Transform = SAME, **when: Callable[[Settings], bool]) -> Row:
    """A row; several names of ours are separated by spaces."""
    return Row(tuple(ours.split()), theirs, transform, **when)


def our_tensors(architecture: Architecture) -> dict[str, tuple[int, ...]]:
    """Every parameter and persistent buffer of the model, with its shape."""
    tensors = {parameter.name: parameter.shape for parameter in parameters(architecture)}
    for index, layer in enumerate(architecture.layers):
        for branch, sublayer in enumerate(layer.branches):
            if sublayer.kind == "moe" and sublayer.settings.selection_bias_rate > 0:
                inside = f"branches.{branch}." if len(layer.branches) > 1 else ""
                name = f"layers.{index}.{inside}block.router.selection_bias_E"
                tensors[name] = (sublayer.settings.num_experts,)
    return tensors


def pieces(table: Table, prefix: str, per_layer: int, architecture: Architecture) -> list[Piece]:
    """What of theirs is made of what of ours, in the order of the model.

    prefix: of a layer's tensors, with `{layer}`. per_layer: sublayers of ours in one layer of theirs.
    """
    present = our_tensors(architecture)
    found = [Piece(entry.ours, (entry.theirs,), entry.transform)
             for entry in table["model"] if present.keys() >= set(entry.ours)]
    for index, layer in enumerate(architecture.layers):
        for sublayer in layer.branches:
            before, their_prefix = f"layers.{index}.", prefix.format(layer=index // per_layer)
            for entry in table.get(sublayer.kind, ()):
                if isinstance(entry, Filler):
                    shape = entry.shape(architecture.model, sublayer.settings)
                    if shape is not None:
                        found.append(Piece((), (their_prefix + entry.theirs,), Constant(shape, entry.value)))
                    continue
                ours = tuple(before + name for name in entry.ours)
                if present.keys() >= set(ours) and entry.when(sublayer.settings):
                    found.append(Piece(ours, _names(their_prefix + entry.theirs, sublayer.settings), entry.transform))
    return found


def _names(theirs: str, settings: Settings) -> tuple[str, ...]:
    if "{expert}" not in theirs:
        return (theirs,)
    return tuple(theirs.format(expert=expert) for expert in range(settings.num_experts))
