"""The part of a pattern that repeats."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from framework.equivalence.period import repeating_end, shorten_layers

LETTERS = st.lists(st.sampled_from("*E-"), min_size=1, max_size=4)


@pytest.mark.parametrize(("layers", "head", "period"), [
    ("*E*E*E", "", "*E"),
    ("MEMEM*EMEMEM*E", "", "MEMEM*E"),
    ("MMMM", "", "M"),
    ("*-*E*E", "*-", "*E"),
    ("*-*-mEmEmE", "*-*-", "mE"),
    ("M*", "", "M*"),
    ("E", "", "E"),
    ("MMM*MMM*", "", "MMM*"),
])
def test_the_repeating_end(layers, head, period):
    assert repeating_end(layers) == (list(head), list(period))


@given(LETTERS, LETTERS, st.integers(1, 5))
def test_head_and_period_give_the_layers_back_and_are_as_short_as_possible(head, period, times):
    layers = head + times * period
    found_head, found_period = repeating_end(layers)
    repeats, rest = divmod(len(layers) - len(found_head), len(found_period))
    assert rest == 0
    assert found_head + repeats * found_period == layers
    assert len(found_head) + len(found_period) <= len(head) + len(period)


@pytest.mark.parametrize(("layers", "at_least", "expected"), [
    ("*E*E*E*E", 1, "*E"), ("*E*E", 2, "*E"), ("*E*E", 3, "*E*E"), ("*E", 8, "*E*E*E*E"), ("MEMEM*E", 8, 2 * "MEMEM*E"),
    ("*-*E*E", 2, "*-*E"), ("*-*E*E", 5, "*-*E*E"), ("M", 4, "MMMM"),
])
def test_periods_repeat_until_there_are_enough_layers(layers, at_least, expected):
    assert "".join(shorten_layers(layers, at_least)) == expected


def test_the_longest_pattern_takes_no_time():
    assert shorten_layers(["*", "E"] * 5000, 1) == ["*", "E"]
