from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from framework.data.blend import LONGEST_PERIOD, Blend
from framework.errors import UserError

WEIGHTS = st.lists(st.integers(1, 500).map(lambda number: number / 100), min_size=1, max_size=6)


@settings(max_examples=80, deadline=None)
@given(weights=WEIGHTS, period=st.integers(0, 10**9))
def test_each_period_has_the_exact_proportions_and_no_sample_twice(weights, period):
    blend = Blend(weights)
    data_set, sample = blend.locate(period * blend.period + np.arange(blend.period))
    exact = [Fraction(repr(weight)) for weight in weights]
    for number, weight in enumerate(exact):
        taken = sample[data_set == number]
        assert Fraction(len(taken), blend.period) == weight / sum(exact)
        assert np.array_equal(taken, period * len(taken) + np.arange(len(taken)))


@settings(max_examples=50, deadline=None)
@given(weights=WEIGHTS, first=st.integers(0, 10**6), cut=st.integers(0, 100))
def test_a_sample_depends_on_its_number_alone(weights, first, cut):
    blend = Blend(weights)
    whole = np.stack(blend.locate(first + np.arange(100)))
    parts = [np.stack(blend.locate(first + np.arange(cut))), np.stack(blend.locate(first + np.arange(cut, 100)))]
    assert np.array_equal(np.concatenate(parts, axis=1), whole)


def test_every_short_run_is_near_the_proportions():
    weights = [0.701, 0.2, 0.099]
    data_set, _ = Blend(weights).locate(np.arange(1000))
    for number, weight in enumerate(weights):
        counts = np.convolve(data_set == number, np.ones(50), mode="valid")
        assert np.abs(counts - 50 * weight).max() <= 2


def test_weights_without_a_short_period_are_rounded():
    weights = [np.pi, np.e, 0.001]
    blend = Blend(weights)
    assert blend.period == LONGEST_PERIOD
    assert np.abs(blend.counts / LONGEST_PERIOD - np.array(weights) / sum(weights)).max() < 1 / LONGEST_PERIOD


@pytest.mark.parametrize("weights", [[1, 0], [1, -1], [1, 1e-9]])
def test_a_share_of_nothing_is_refused(weights):
    with pytest.raises(UserError, match="blend weights"):
        Blend(weights)
