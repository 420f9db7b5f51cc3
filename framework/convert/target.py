"""An architecture of transformers: what it can express, its config.json, and its tensors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from framework.convert.fields import Config, Entry, Facts, Mismatch
from framework.convert.layers import Layers, spell
from framework.convert.table import Piece, Table, our_tensors, pieces
from framework.errors import UserError
from framework.recipe.errors import shorten

if TYPE_CHECKING:
    from framework.convert.conditions import Condition
    from framework.recipe import Architecture


LARGEST = 2**28
"""No size of a model comes near; products of two stay far from where counting ends."""

MOST_TOLD = 3
"""Tensors that a message names."""


@dataclass(frozen=True)
class WhereZero:
    """A field of the recipe that only the weights tell: their tensors under a name, in every layer, all zero or not."""

    theirs: str
    path: str
    zero: Any
    other: Any


@dataclass(frozen=True)
class Target:
    """model_type, model_class: as transformers calls them. layers: what its layers are made of.

    conditions: on recipes. config: entries of config.json beside those of `layers`. tensors: by kind of sublayer.
    prefix: of a layer's tensors. from_weights: fields that config.json does not tell. holds_multipliers: it has
    factors of its own for embedding, residual stream, attention and logits. without_attention: whether transformers
    generates with such a model. caution: what a user of this model must know, or None.
    """

    model_type: str
    model_class: str
    layers: Layers
    conditions: tuple[Condition, ...]
    config: tuple[Entry, ...]
    tensors: Table
    prefix: str = "model.layers.{layer}."
    from_weights: tuple[WhereZero, ...] = ()
    holds_multipliers: bool = False
    without_attention: bool = True
    caution: Callable[[Architecture], str | None] = lambda architecture: None

    def mismatches(self, architecture: Architecture) -> list[str]:
        """Every reason why a recipe's model cannot be this one; none: it can."""
        found = [text for condition in self.conditions if (text := condition.mismatch(architecture))]
        try:
            self.layers.letters(architecture)
        except Mismatch as reason:
            found.insert(0, str(reason))
        if not found:
            placed = {name for piece in self.pieces(architecture) for name in piece.ours}
            homeless = [name for name in our_tensors(architecture) if name not in placed]
            found = [f"{name} has no place in it" for name in homeless[:MOST_TOLD]]
        return found

    def fits_layers(self, architecture: Architecture) -> bool:
        """Whether at least the order of sublayers can be this model's."""
        try:
            self.layers.letters(architecture)
        except Mismatch:
            return False
        return True

    @property
    def names_experts(self) -> bool:
        """Whether each expert has tensors of its own."""
        return any("{expert}" in entry.theirs for entry in self.tensors.get("moe", ()))

    def pieces(self, architecture: Architecture) -> list[Piece]:
        """Their tensors beside ours."""
        return pieces(self.tensors, self.prefix, self.layers.per_layer, architecture)

    def write_config(self, facts: Facts) -> dict[str, Any]:
        """The whole config.json."""
        written: dict[str, Any] = {"architectures": [self.model_class], "model_type": self.model_type}
        written |= self.layers.write(self.layers.letters(facts.architecture))
        for entry in self.config:
            written |= entry.write(facts)
        if not self.without_attention and not any(each.kind == "attention" for each in facts.architecture.sublayers()):
            written["use_cache"] = False
        return written

    def read_config(self, config: Config, place: str = "config.json") -> dict[str, Any]:
        """Dotted fields of the recipe's model section. place: the file. Raises UserError with every entry that cannot
        be ours."""
        fields, wrong = {}, []
        for read in (lambda config: {"pattern": spell(self.layers.read(config))}, *(each.read for each in self.config)):
            watched = _Watched(config)
            try:
                fields |= read(watched)
            except Mismatch as reason:
                wrong.append(str(reason))
            except (TypeError, ValueError, KeyError, AttributeError, ArithmeticError) as error:
                wrong.append(f"{watched.told()} cannot be read ({type(error).__name__}: {error})")
        wrong += [f"{path} is {shorten(value)}; allowed: below {LARGEST}" for path, value in fields.items()
                  if isinstance(value, int) and value >= LARGEST]
        if wrong:
            raise UserError(f"{place}: of a {self.model_type}: {'; '.join(wrong)}")
        return fields


class _Watched(dict):
    """A config that remembers which keys an entry asked for."""

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self._asked: dict[str, Any] = {}

    def get(self, key: str, default: Any = None) -> Any:
        self._asked[key] = super().get(key, default)
        return self._asked[key]

    def __getitem__(self, key: str) -> Any:
        self._asked[key] = super().get(key)
        return super().__getitem__(key)

    def told(self) -> str:
        """The keys and their values."""
        return ", ".join(f"{key} {shorten(value)}" for key, value in self._asked.items()) or "an entry"
