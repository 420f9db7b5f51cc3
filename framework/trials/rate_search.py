"""Coordinate descent over positive numbers as a pure function of the losses known so far.

The procedure of https://arxiv.org/abs/2507.03526 as its authors' code has it: each field in turn, in a random order, is
multiplied by four factors; the best of the four is kept if it beats what was best before; passes over all fields follow
each other until one changes nothing. No state is kept: what to try next follows from the losses, so a search that was
interrupted is the same search when its losses are read again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from random import Random

FACTORS = (Fraction(1, 5), Fraction(2, 3), Fraction(3, 2), Fraction(5))

Point = tuple[Fraction, ...]
"""For each field, how many times its starting value. Exact, so that 2/3 * 3/2 is the point that it came from."""


@dataclass(frozen=True)
class Search:
    """num_fields: how many numbers are searched. num_passes: at most. seed: of the order in each pass."""

    num_fields: int
    num_passes: int
    seed: int

    def start(self) -> Point:
        """Every field at its starting value: the baseline."""
        return (Fraction(1),) * self.num_fields

    def order(self, number: int) -> list[int]:
        """The fields in the order in which pass `number` (from 1) takes them."""
        return Random(f"{self.seed}:{number}").sample(range(self.num_fields), self.num_fields)


@dataclass(frozen=True)
class Progress:
    """Where a search stands.

    trials: every point wanted so far, in the order in which they were, which never changes as losses come in.
    accepted: those that were the best, one after the other, the baseline first. wanted: what to try before the search
    can go on; empty when it is over. number: of the pass under way, or the last. converged: a pass changed nothing.
    """

    trials: tuple[Point, ...]
    accepted: tuple[Point, ...]
    wanted: tuple[Point, ...]
    number: int
    converged: bool = False

    @property
    def best(self) -> Point:
        return self.accepted[-1]


def replay(
    search: Search, losses: Mapping[Point, float], allowed: Callable[[int, Fraction], bool] = lambda field, times: True
) -> Progress:
    """Follow the search as far as the losses reach.

    losses: of points tried; infinity where a run diverged, never NaN. allowed: whether a field can be so many times its
    starting value; what cannot be is left out. Of equal losses the earlier point is the best.
    """
    trials = dict.fromkeys([search.start()])
    accepted = [search.start()]
    for number in range(1, search.num_passes + 1):
        before = accepted[-1]
        for field in search.order(number):
            batch = [accepted[-1], *_variants(accepted[-1], field, allowed)]
            trials |= dict.fromkeys(batch)
            if wanted := tuple(point for point in batch if point not in losses):
                return Progress(tuple(trials), tuple(accepted), wanted, number)
            best = min(batch, key=losses.__getitem__)
            if best != accepted[-1]:
                accepted.append(best)
        if accepted[-1] == before:
            return Progress(tuple(trials), tuple(accepted), (), number, converged=True)
    return Progress(tuple(trials), tuple(accepted), (), search.num_passes)


def _variants(point: Point, field: int, allowed: Callable[[int, Fraction], bool]) -> list[Point]:
    """The point with one field times each factor."""
    values = [point[field] * factor for factor in FACTORS]
    return [(*point[:field], value, *point[field + 1:]) for value in values if allowed(field, value)]
