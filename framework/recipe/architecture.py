"""From a recipe's model section to the list of sublayers, each with all its sizes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from framework.recipe.derive import derive, reference_d_ff, section_of, variant_settings
from framework.recipe.errors import RecipeError, shorten
from framework.recipe.pattern import PUNCTUATION, Pattern, parse
from framework.recipe.schema import FFN, Attention, Mamba, Model, MoE

LETTERS = {"*": "attention", "-": "ffn", "E": "moe", "M": "mamba2", "m": "mamba1"}
NAMES = {"attention": "attention", "ffn": "FFN", "moe": "MoE", "mamba1": "Mamba-1", "mamba2": "Mamba-2"}

Settings = Attention | FFN | MoE | Mamba


@dataclass(frozen=True)
class Sublayer:
    """A letter of the pattern: its kind (attention, ffn, moe, mamba1, mamba2) and its settings without gaps."""

    letter: str
    kind: str
    settings: Settings


@dataclass(frozen=True)
class Layer:
    """What stands under one residual: one sublayer, or several parallel branches."""

    branches: tuple[Sublayer, ...]


@dataclass(frozen=True)
class Architecture:
    """A model with every size known. cuts: indices of the layers before which a pipeline cut stands."""

    layers: tuple[Layer, ...]
    cuts: tuple[int, ...]
    model: Model
    pattern: Pattern

    def sublayers(self) -> Iterator[Sublayer]:
        """Every sublayer in order, branches one after the other."""
        for layer in self.layers:
            yield from layer.branches

    def names(self) -> dict[str, str]:
        """What each letter of the pattern is called."""
        return {
            sublayer.letter: NAMES[sublayer.kind] + ("" if sublayer.letter in LETTERS else f" ({sublayer.letter})")
            for sublayer in self.sublayers()
        }


def architecture(model: Model) -> Architecture:
    """Parse the pattern and derive every size of the sublayers that it uses.

    Raises RecipeError for a bad pattern and for sizes that are impossible, in sublayers that the pattern uses.
    """
    kinds = LETTERS | {letter: variant.kind for letter, variant in model.sublayers.items()}
    _check_letters(model)
    pattern = parse(model.pattern, kinds)
    # In the order of the pattern, so that of two mistakes the same one is told each time.
    used = dict.fromkeys(letter for layer in pattern.layers for letter in layer)
    sublayers = {letter: Sublayer(letter, kinds[letter], _settings(model, letter, kinds[letter])) for letter in used}
    layers = tuple(Layer(tuple(sublayers[letter] for letter in layer)) for layer in pattern.layers)
    return Architecture(layers, pattern.cuts, model, pattern)


def derived_value(architecture: Architecture, key: str) -> object:
    """The value that a field of `model` left open takes, by its dotted key; None where it has none.

    The Mamba section serves both kinds: a field that they would fill differently has no one value.
    """
    path = key.split(".")
    if len(path) != 3 or path[0] != "model":
        return None
    if path[1:] == ["ffn", "d_ff"]:
        return used_d_ff(architecture)
    values = {
        getattr(sublayer.settings, path[2], None)
        for sublayer in architecture.sublayers()
        if sublayer.letter in LETTERS and section_of(sublayer.kind) == path[1]
    }
    return values.pop() if len(values) == 1 else None


def used_d_ff(architecture: Architecture) -> int | None:
    """Width of the dense FFN, also where only experts are measured by it; None in a model with neither."""
    kinds = {sublayer.kind for sublayer in architecture.sublayers()}
    return int(reference_d_ff(architecture.model)) if kinds & {"ffn", "moe"} else None


def _settings(model: Model, letter: str, kind: str) -> Settings:
    if letter in LETTERS:
        return derive(model, kind, getattr(model, section_of(kind)), f"model.{section_of(kind)}")
    return derive(model, kind, variant_settings(model, letter), f"model.sublayers.{letter}")


def _check_letters(model: Model) -> None:
    for letter in model.sublayers:
        if letter in LETTERS or letter in PUNCTUATION or not letter.isascii() or not letter.isalpha():
            taken = f"{' '.join(LETTERS)} have a meaning already" if letter in LETTERS else "x repeats"
            raise RecipeError(f"model.sublayers.{letter}", f"{shorten(letter)} cannot name a sublayer ({taken}); "
                              "allowed: any other letter a-z, A-Z")


def variants(model: Model) -> dict[str, Settings]:
    """The settings of each further letter, validated. Raises RecipeError for fields that its kind does not have."""
    return {letter: variant_settings(model, letter) for letter in model.sublayers}
