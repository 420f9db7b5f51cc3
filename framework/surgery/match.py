"""Which sublayer of the dense run becomes which of the target; what else differs is refused by name."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from framework.errors import UserError
from framework.recipe import Architecture, Sublayer
from framework.recipe.architecture import NAMES
from framework.recipe.derive import section_of

MODEL_FIELDS = ("d_model", "vocab_size", "tie_embeddings", "norm", "norm_eps")
FREE = frozenset({
    "load_balance_weight", "load_balance_over", "z_loss_weight", "capacity_factor", "capacity_in_evaluation",
    "chunk_size", "multiplier", "granularity", "expansion_rate",
})
"""Settings of a sublayer that may differ where it stays what it is: they change training or speed, or only tell of
others that are compared."""


@dataclass(frozen=True)
class Pair:
    """A sublayer of the target and that of the dense run which it is made of.

    prefix: of its parameters' names, in both. place: what errors call it.
    """

    prefix: str
    place: str
    source: Sublayer
    target: Sublayer

    @property
    def becomes_mixture(self) -> bool:
        return (self.source.kind, self.target.kind) == ("ffn", "moe")


def match(source: Architecture, target: Architecture) -> list[Pair]:
    """Pair sublayers by their place in the patterns: `-` becomes `E` or stays, every other one stays what it is.

    Raises UserError, in one line that names both sides, where depth, width, a sublayer or any setting of what stays
    differs, and where nothing becomes a mixture of experts.
    """
    for field in MODEL_FIELDS:
        _require_same(f"model.{field}", getattr(source.model, field), getattr(target.model, field))
    for field, before in source.model.multipliers:
        _require_same(f"model.multipliers.{field}", before, getattr(target.model.multipliers, field))
    pairs = list(_pairs(source, target))
    for pair in pairs:
        if not pair.becomes_mixture:
            _require_same_kind(pair)
    if not any(pair.target.kind == "moe" for pair in pairs):
        raise UserError(f"model.pattern: the target {target.model.pattern!r} has no experts; allowed: E where the "
                        f"dense run's {source.model.pattern!r} has -")
    if not any(pair.becomes_mixture for pair in pairs):
        raise UserError(f"model.pattern: nothing of the run's {source.model.pattern!r} becomes experts in the target "
                        f"{target.model.pattern!r}; allowed: E where the run has -")
    return pairs


def _pairs(source: Architecture, target: Architecture) -> Iterator[Pair]:
    shapes = [[len(layer.branches) for layer in each.layers] for each in (source, target)]
    if shapes[0] != shapes[1]:
        depths = " and ".join(str(len(shape)) for shape in shapes)
        raise UserError(f"model.pattern: the dense run's {source.model.pattern!r} and the target's "
                        f"{target.model.pattern!r} have {depths} layers, or other branches in them; allowed: the same")
    for index, (before, after) in enumerate(zip(source.layers, target.layers, strict=True)):
        for branch, (one, other) in enumerate(zip(before.branches, after.branches, strict=True)):
            inside = f"branches.{branch}." if len(before.branches) > 1 else ""
            yield Pair(f"layers.{index}.{inside}block.", f"layer {index} ({other.letter})", one, other)


def _require_same_kind(pair: Pair) -> None:
    one, other = pair.source, pair.target
    if one.kind != other.kind:
        raise UserError(f"model.pattern: {pair.place} is {NAMES[other.kind]} in the target, {NAMES[one.kind]} "
                        f"({one.letter}) in the dense run; allowed: E or - where the run has -, the same elsewhere")
    before, after = (each.settings.model_dump(mode="json") for each in (one, other))
    for field in before:
        if field not in FREE:
            _require_same(f"{pair.place}: model.{section_of(one.kind)}.{field}", before[field], after[field])


def _require_same(key: str, before: Any, after: Any) -> None:
    if before != after:
        raise UserError(f"{key} is {after} in the target, {before} in the dense run; allowed: {before}")
