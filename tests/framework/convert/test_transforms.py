"""Transforms are exact inverses, on whatever shapes, and tell shapes without reading."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from framework.convert.layers import spell
from framework.convert.transforms import SAME, UNSTACK, Chain, Concat, Constant, Times, Unsqueeze, their_shapes
from framework.recipe.architecture import LETTERS
from framework.recipe.pattern import parse

SIZE = st.integers(1, 4)
PARTS = st.lists(SIZE, min_size=1, max_size=4)
CASES = st.one_of(
    st.tuples(st.just(SAME), st.tuples(SIZE, SIZE).map(lambda shape: [shape])),
    st.tuples(st.just(UNSTACK), st.tuples(SIZE, SIZE, SIZE).map(lambda shape: [shape])),
    st.tuples(st.just(Times(2.0)), st.tuples(SIZE, SIZE).map(lambda shape: [shape])),
    st.tuples(st.sampled_from([Unsqueeze(0), Unsqueeze(1)]), st.tuples(SIZE, SIZE).map(lambda shape: [shape])),
    st.tuples(st.sampled_from([Concat(), Chain(Concat(), Unsqueeze(1))]),
              PARTS.map(lambda sizes: [(size, 3) for size in sizes])),
    st.tuples(st.just(Concat(1)), PARTS.map(lambda sizes: [(2, size, 3) for size in sizes])),
)


@given(CASES, st.integers(0, 99))
@settings(max_examples=20, deadline=None)
def test_there_and_back_is_bit_equal(case, seed):
    transform, shapes = case
    generator = torch.Generator().manual_seed(seed)
    ours = [torch.randn(shape, generator=generator) for shape in shapes]
    theirs = transform.to_theirs(ours)
    assert [tuple(tensor.shape) for tensor in theirs] == their_shapes(transform, shapes)
    assert sum(tensor.numel() for tensor in theirs) == sum(tensor.numel() for tensor in ours)
    back = transform.to_ours(theirs, shapes)
    assert len(back) == len(ours) and all(torch.equal(*pair) for pair in zip(back, ours, strict=True))


def test_a_constant_takes_nothing_but_itself():
    constant = Constant((2, 0, 3))
    assert their_shapes(constant, []) == [(2, 0, 3)] and constant.to_ours(constant.to_theirs([]), []) == []
    with pytest.raises(ValueError, match="holds more than 0"):
        Constant((2,)).to_ours([torch.tensor([0.0, 1e-30])], [])


def test_shapes_beyond_counting_are_refused():
    with pytest.raises(ValueError, match="that of no tensor"):
        their_shapes(SAME, [(2**30, 2**30)])


@given(st.lists(st.sampled_from(["*E", "*-", "ME", "mE"]), min_size=1, max_size=8))
@settings(max_examples=20, deadline=None)
def test_a_spelled_pattern_means_its_layers(layers):
    assert "".join(parse(spell(layers), LETTERS).layers) == "".join(layers)
