"""The pattern language: a string that lists the sublayers of a model.

    letter          one sublayer              (...)xN, [...]xN, letter xN   repeats
    [mE]            branches, one residual    |                             a pipeline cut

`"(*E|)x2*E"` is attention, MoE, cut, attention, MoE, cut, attention, MoE.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from framework.recipe.errors import RecipeError

MAX_LAYERS = 10_000
CUT = "|"
PUNCTUATION = "()[]|x0123456789"


@dataclass(frozen=True)
class Leaf:
    """Letters that stand in one layer; several are parallel branches."""

    letters: str


@dataclass(frozen=True)
class Group:
    """Items that stand `times` over; an item is a leaf, a group or a cut."""

    items: tuple[Leaf | Group | str, ...]
    times: int


@dataclass(frozen=True)
class Pattern:
    """A parsed pattern. layers: the letters of each layer; cuts: indices of layers that a cut stands before."""

    root: Group
    layers: tuple[str, ...]
    cuts: tuple[int, ...]


def parse(text: str, letters: Collection[str]) -> Pattern:
    """Read a pattern over the given letters.

    Raises RecipeError for an unknown letter, unbalanced or empty brackets, a bad repeat, a cut without a layer on
    both sides, and more than MAX_LAYERS layers.
    """
    root = Group(_Reader(text, letters).read(), 1)
    if _num_layers(root) > MAX_LAYERS:
        raise RecipeError("model.pattern", f"{text!r} has {_num_layers(root)} layers; allowed: up to {MAX_LAYERS}")
    flat = _flatten(root)
    layers, cuts = [], []
    for item in flat:
        if isinstance(item, Leaf):
            layers.append(item.letters)
        else:
            cuts.append(len(layers))
    if len(set(cuts)) < len(cuts) or 0 in cuts or len(layers) in cuts:
        raise RecipeError("model.pattern", f"{text!r} has a pipeline cut | with nothing on one side; "
                          "allowed: between layers")
    return Pattern(root, tuple(layers), tuple(cuts))


def describe(pattern: Pattern, names: Mapping[str, str]) -> str:
    """The pattern in words and in order, as "(Mamba-1, MoE) x8"."""
    return _describe_items(pattern.root, names)


def count(pattern: Pattern, names: Mapping[str, str]) -> str:
    """How often each sublayer stands in the model, as "Mamba-1 x8, MoE x8"."""
    totals = Counter(letter for layer in pattern.layers for letter in layer)
    return ", ".join(f"{names[letter]} x{total}" for letter, total in totals.items())


def _describe_items(group: Group, names: Mapping[str, str]) -> str:
    return ", ".join(_describe(item, names) for item in group.items)


def _describe(item: Leaf | Group | str, names: Mapping[str, str]) -> str:
    if isinstance(item, str):
        return "pipeline cut"
    if isinstance(item, Leaf):
        words = " + ".join(names[letter] for letter in item.letters)
        return f"[{words}]" if len(item.letters) > 1 else words
    inner = _describe_items(item, names)
    bare = len(item.items) == 1 and not isinstance(item.items[0], Group)
    return f"{inner if bare else f'({inner})'} x{item.times}"


def _num_layers(item: Leaf | Group | str) -> int:
    if isinstance(item, Group):
        return item.times * sum(_num_layers(inner) for inner in item.items)
    return int(isinstance(item, Leaf))


def _flatten(item: Leaf | Group | str) -> list[Leaf | str]:
    if isinstance(item, Group):
        return [leaf for inner in item.items for leaf in _flatten(inner)] * item.times
    return [item]


class _Reader:
    """Recursive descent over the characters of one pattern."""

    def __init__(self, text: str, letters: Collection[str]) -> None:
        self.text, self.letters, self.position = text, letters, 0

    def read(self) -> tuple[Leaf | Group | str, ...]:
        items = self._items(depth=0)
        if not any(_num_layers(item) for item in items):
            raise self._error("an empty pattern")
        return items

    def _items(self, depth: int) -> tuple[Leaf | Group | str, ...]:
        if depth > 20:
            raise self._error("brackets nested more than 20 deep")
        items: list[Leaf | Group | str] = []
        while self._peek() and self._peek() != ")":
            items.append(self._item(depth))
        if depth == 0 and self._peek():
            raise self._error("')' without '('")
        return tuple(items)

    def _item(self, depth: int) -> Leaf | Group | str:
        character = self._take()
        if character == CUT:
            return CUT
        if character == "(":
            inner = self._items(depth + 1)
            if not inner or self._take() != ")":
                raise self._error("'(' without ')'" if inner else "empty brackets")
            return Group(inner, self._times())
        leaf = Leaf(self._branches() if character == "[" else self._letter(character))
        times = self._times()
        return leaf if times == 1 else Group((leaf,), times)

    def _branches(self) -> str:
        branches = ""
        while self._peek() and self._peek() != "]":
            branches += self._letter(self._take())
        if self._take() != "]":
            raise self._error("'[' without ']'")
        if not branches:
            raise self._error("empty brackets")
        return branches

    def _letter(self, character: str) -> str:
        if character in self.letters:
            return character
        self.position -= 1
        swapped = character.swapcase()
        hint = f"; nearest: {swapped}" if swapped != character and swapped in self.letters else ""
        raise self._error(f"{character!r}", hint)

    def _times(self) -> int:
        if self._peek() != "x":
            return 1
        self._take()
        digits = ""
        while self._peek() and self._peek() in "0123456789":
            digits += self._take()
        if not digits or len(digits) > 6 or int(digits) == 0:
            raise self._error(f"'x{digits}' as a repeat; allowed: x1 to x{MAX_LAYERS}")
        return int(digits)

    def _peek(self) -> str:
        return self.text[self.position : self.position + 1]

    def _take(self) -> str:
        character = self._peek()
        self.position += 1
        return character

    def _error(self, given: str, hint: str = "") -> RecipeError:
        allowed = f"letters {' '.join(self.letters)}, (...)xN, [...] and |"
        position = min(self.position, len(self.text)) + 1
        return RecipeError(
            "model.pattern", f"{given} at position {position} of {self.text!r}; allowed: {allowed}{hint}"
        )
