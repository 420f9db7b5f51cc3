"""The algebra of a sweep: axes, and the product, zip and concatenation of them."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod
from typing import Protocol

from framework.recipe.errors import Origin, RecipeError
from framework.sweep.values import Value

Assignment = dict[str, Value]
"""What one cell changes: a value for each dotted key, in the order of the axes."""


class Node(Protocol):
    """A set of assignments. keys: all that any of them states. count: how many there are, without making them."""

    @property
    def keys(self) -> tuple[str, ...]: ...

    @property
    def count(self) -> int: ...

    def assignments(self) -> Iterator[Assignment]: ...


@dataclass(frozen=True)
class Axis:
    """The values of one field. origin: where it was stated."""

    key: str
    values: tuple[Value, ...]
    origin: Origin

    @property
    def keys(self) -> tuple[str, ...]:
        return (self.key,)

    @property
    def count(self) -> int:
        return len(self.values)

    def assignments(self) -> Iterator[Assignment]:
        return ({self.key: value} for value in self.values)


@dataclass(frozen=True)
class _Several:
    parts: tuple[Node, ...]

    @property
    def keys(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(key for part in self.parts for key in part.keys))


@dataclass(frozen=True)
class Product(_Several):
    """Each of one part with each of the others; the last part changes fastest. Without parts one empty assignment."""

    @property
    def count(self) -> int:
        return prod(part.count for part in self.parts)

    def assignments(self) -> Iterator[Assignment]:
        for combination in itertools.product(*(list(part.assignments()) for part in self.parts)):
            yield _merged(combination)


@dataclass(frozen=True)
class Zip(_Several):
    """The first of all parts, then the second of all, ..."""

    @property
    def count(self) -> int:
        return self.parts[0].count

    def assignments(self) -> Iterator[Assignment]:
        for combination in zip(*(part.assignments() for part in self.parts), strict=True):
            yield _merged(combination)


@dataclass(frozen=True)
class Chain(_Several):
    """All of one part, then all of the next, which may state other fields."""

    @property
    def count(self) -> int:
        return sum(part.count for part in self.parts)

    def assignments(self) -> Iterator[Assignment]:
        return itertools.chain.from_iterable(part.assignments() for part in self.parts)


def axes_of(node: Node) -> Iterator[Axis]:
    """The axes in a node, in their order."""
    if isinstance(node, Axis):
        yield node
    else:
        for part in node.parts:
            yield from axes_of(part)


def product(parts: Sequence[Node], origin: Origin) -> Node:
    """Raises RecipeError where two parts state one field."""
    _require_apart(parts, "product", origin)
    return parts[0] if len(parts) == 1 else Product(tuple(parts))


def zipped(parts: Sequence[Node], origin: Origin) -> Node:
    """Raises RecipeError where two parts state one field, and where they are not equally long."""
    _require_apart(parts, "zip", origin)
    if len({part.count for part in parts}) > 1:
        lengths = ", ".join(f"{part.count} of {' and '.join(part.keys)}" for part in parts)
        raise RecipeError("zip", f"given {lengths}; allowed: as many values of each", origin)
    return Zip(tuple(parts))


def overlap(first: str, second: str) -> bool:
    """Whether two dotted keys are one, or one is a section that the other lies in."""
    return first == second or first.startswith(f"{second}.") or second.startswith(f"{first}.")


def _require_apart(parts: Sequence[Node], what: str, origin: Origin) -> None:
    for index, part in enumerate(parts):
        for earlier in parts[:index]:
            for key, before in itertools.product(part.keys, earlier.keys):
                if overlap(key, before):
                    beside = "" if key == before else f" beside {before}"
                    raise RecipeError(key, f"stated by two axes of one {what}{beside}; allowed: by one of them", origin)


def _merged(assignments: Sequence[Assignment]) -> Assignment:
    return {key: value for assignment in assignments for key, value in assignment.items()}
