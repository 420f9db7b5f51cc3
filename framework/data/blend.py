"""Which data set, and which sample of it, the i-th sample of a blend is: a pure function, in constant time."""

from collections.abc import Sequence
from fractions import Fraction
from math import gcd, lcm

import numpy as np

from framework.errors import UserError

LONGEST_PERIOD = 65536


class Blend:
    """Data sets mixed by weight.

    Every run of `period` samples that starts at a multiple of it takes exactly `counts[d]` from data set d, spread
    evenly. Weights with a common denominator up to 65536 are met exactly; others are rounded to that grid.
    """

    def __init__(self, weights: Sequence[float]):
        self.counts = _counts(weights)
        self.period = int(self.counts.sum())
        place = np.concatenate([(np.arange(count) + 0.5) / count for count in self.counts])
        data_set = np.repeat(np.arange(len(self.counts)), self.counts)
        order = np.lexsort((data_set, place))
        self._data_set = data_set[order]
        self._rank = np.concatenate([np.arange(count) for count in self.counts])[order]

    def locate(self, samples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(data set, sample of that data set), both int64, of each sample of the blend."""
        turn, place = np.divmod(np.asarray(samples, dtype=np.int64), self.period)
        data_set = self._data_set[place]
        return data_set, turn * self.counts[data_set] + self._rank[place]


def _counts(weights: Sequence[float]) -> np.ndarray:
    assert len(weights) > 0
    exact = [Fraction(repr(float(weight))) for weight in weights]
    if min(exact) <= 0:
        raise UserError(f"blend weights {list(weights)}: each must be above 0")
    scale = lcm(*(weight.denominator for weight in exact))
    counts = [int(weight * scale) for weight in exact]
    counts = [count // gcd(*counts) for count in counts]
    if sum(counts) <= LONGEST_PERIOD:
        return np.array(counts, dtype=np.int64)
    return _rounded(exact)


def _rounded(weights: Sequence[Fraction]) -> np.ndarray:
    """Largest-remainder rounding to `LONGEST_PERIOD` parts."""
    share = [weight * LONGEST_PERIOD / sum(weights) for weight in weights]
    counts = [int(part) for part in share]
    by_remainder = sorted(range(len(share)), key=lambda index: counts[index] - share[index])
    for index in by_remainder[: LONGEST_PERIOD - sum(counts)]:
        counts[index] += 1
    if min(counts) == 0:
        raise UserError(
            f"blend weights {[float(weight) for weight in weights]}: the smallest share allowed is 1/{LONGEST_PERIOD}"
        )
    return np.array(counts, dtype=np.int64)
