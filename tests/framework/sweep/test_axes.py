"""Axes: the algebra of product, zip and chain, and values written as ranges."""

from fractions import Fraction
from math import prod

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from framework.recipe import RecipeError
from framework.recipe.errors import COMMAND_LINE
from framework.sweep import values
from framework.sweep.axes import Axis, Chain, Node, product, zipped
from framework.sweep.names import cell_names, key_tails

FEW = settings(max_examples=20, deadline=None)


def axis(key: str, count: int) -> Axis:
    return Axis(key, tuple(map(values.of, range(count))), COMMAND_LINE)


@st.composite
def nodes(draw, prefix: str = "a", depth: int = 2) -> tuple[Node, int]:
    """A node over fields of its own, and how many assignments the algebra says that it has."""
    kind = draw(st.sampled_from(["axis", "product", "zip", "chain"])) if depth else "axis"
    if kind == "axis":
        count = draw(st.integers(1, 3))
        return axis(prefix, count), count
    if kind == "zip":
        count = draw(st.integers(1, 3))
        return zipped([axis(f"{prefix}{index}", count) for index in range(2)], COMMAND_LINE), count
    parts = [draw(nodes(f"{prefix}{index}", depth - 1)) for index in range(draw(st.integers(1, 3)))]
    counts = [count for _, count in parts]
    if kind == "chain":
        return Chain(tuple(part for part, _ in parts)), sum(counts)
    return product([part for part, _ in parts], COMMAND_LINE), prod(counts)


@FEW
@given(nodes())
def test_counts_are_those_of_the_algebra_and_names_are_unique(node_and_count):
    node, count = node_and_count
    assignments = list(node.assignments())
    assert len(assignments) == node.count == count
    assert all(set(assignment) <= set(node.keys) for assignment in assignments)
    assert len(set(cell_names(assignments))) == count


def test_the_last_axis_changes_fastest_and_a_zip_goes_through_all_at_once():
    stated = [{key: value.given for key, value in each.items()} for each in product(
        [axis("a", 2), zipped([axis("b", 2), axis("c", 2)], COMMAND_LINE)], COMMAND_LINE).assignments()]
    assert stated == [{"a": 0, "b": 0, "c": 0}, {"a": 0, "b": 1, "c": 1}, {"a": 1, "b": 0, "c": 0},
                      {"a": 1, "b": 1, "c": 1}]
    assert list(stated[0]) == ["a", "b", "c"]


@pytest.mark.parametrize(("keys", "said"), [
    (("optim.lr", "optim.lr"), "optim.lr: stated by two axes"), (("data.blend", "data.blend.a"), "beside data.blend"),
])
def test_one_field_is_stated_once(keys, said):
    for join in (product, zipped):
        with pytest.raises(RecipeError, match=said):
            join([axis(key, 2) for key in keys], COMMAND_LINE)


@pytest.mark.parametrize(("text", "expected"), [
    ("1..5", [1, 2, 3, 4, 5]), ("1..9 step 2", [1, 3, 5, 7, 9]), ("3..1 step -1", [3, 2, 1]), ("7..7", [7]),
    ("0.1..0.5 step 0.1", [0.1, 0.2, 0.3, 0.4, 0.5]), ("1.0..2.0", [1.0, 2.0]),
    ("1e3..3e3 step 1e3", [1000, 2000, 3000]),
    ("log2(-3..-1)", [0.125, 0.25, 0.5]), ("log2(0..3)", [1, 2, 4, 8]), ("log2( -1..0 step 0.5 )", [0.5, 2**-0.5, 1]),
    ("log10(-4..-2)", [1e-4, 1e-3, 1e-2]),
])
def test_ranges(text, expected):
    found = [value.given for value in values.read_range(text, "optim.lr", COMMAND_LINE)]
    assert values.is_range(text) and found == expected
    assert [type(value) for value in found] == [type(value) for value in expected]


def test_powers_are_named_by_base_and_exponent():
    assert [value.label for value in values.read_range("log2(-10..-9 step 0.5)", "optim.lr", COMMAND_LINE)] == [
        "2^-10", "2^-9.5", "2^-9"]


@FEW
@given(st.integers(-1000, 1000), st.integers(1, 60), st.sampled_from(["1", "0.1", "0.25", "0.003"]))
def test_a_range_has_the_floats_nearest_to_its_decimals(first, count, step):
    low = Fraction(first, 8)
    high = low + count * Fraction(step)
    spelled = f"{float(low)}..{float(high)} step {step}"
    found = [value.given for value in values.read_range(spelled, "optim.lr", COMMAND_LINE)]
    assert found == [float(low + index * Fraction(step)) for index in range(count + 1)]


@pytest.mark.parametrize(("text", "said"), [
    ("1..10 step 2", "an end at 9 or 11"), ("0..1 step 0.3", "an end at 0.9 or 1.2"), ("5..1", "never reaches"),
    ("1..5 step 0", "never reaches"), ("1..1e9", "1,000,000,000 values"), ("log2(0..2000)", "powers up to 1023"),
    ("log2(x)", "given 'log2.x.'"), ("1e19..1e19", "below 2.63"), ("1..1e999", "1e999|values"),
])
def test_ranges_that_cannot_be(text, said):
    with pytest.raises(RecipeError, match=said):
        values.read_range(text, "optim.lr", COMMAND_LINE)


def test_names_take_the_shortest_ends_that_differ():
    keys = ["optim.relative_lr.router.start", "optim.relative_lr.expert.start", "model.moe.router", "optim.lr"]
    assert key_tails(keys) == dict(zip(keys, ["router.start", "expert.start", "router", "lr"], strict=True))


def test_names_that_would_be_long_or_equal_get_a_hash():
    long = [{f"model.field_number_{index}": values.of(index + shift) for index in range(9)} for shift in range(2)]
    assert len({*cell_names(long)}) == 2 and max(map(len, cell_names(long))) == 120
    same = [{"a": values.of("x-b_2")}, {"a": values.of("x"), "b": values.of(2)}]
    assert len({*cell_names(same)}) == 2
