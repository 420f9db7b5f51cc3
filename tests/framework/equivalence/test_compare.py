"""The table's arithmetic, on numbers made up for it."""

import math

import numpy as np
import pytest

from framework.equivalence.compare import TOLERANCES, Tolerance, compare, expert_of, relative_difference
from framework.equivalence.measure import Measured

UP = "layers.1.block.experts.up"


def measured(losses=(2.0,) * 6, counts=(5, 3, 2), **changed: np.ndarray) -> Measured:
    """Three experts, the last one with weights a thousand times smaller, and a norm. changed: gradients or updates."""
    arrays = {"norm.weight": np.array([3.0, 4.0]), UP: np.ones((3, 2, 2)) * np.array([1.0, 1.0, 1e-3])[:, None, None]}
    return Measured(losses=tuple(losses), gradients=changed.get("gradients", arrays),
                    updates=changed.get("updates", arrays), stacked=frozenset({UP}),
                    tokens_per_expert={"layers.1": list(counts)})


def with_expert(index: int, factor: float) -> dict[str, np.ndarray]:
    arrays = {name: array.copy() for name, array in measured().gradients.items()}
    arrays[UP][index] *= factor
    return arrays


def row(*stages: Measured):
    return compare("tp2", 2, stages, measured(), 1.0)


def test_equal_measurements_pass():
    found = row(measured())
    assert (found.loss_difference, found.gradient_difference, found.update_difference) == (0, 0, 0)
    assert found.untouched_parameters == found.excused_experts == []
    assert found.passes(TOLERANCES["float64"])


@pytest.mark.parametrize("kind", ["gradients", "updates"])
def test_a_small_expert_does_not_hide_among_large_ones(kind):
    found = row(measured(**{kind: with_expert(2, 1.01)}))
    differences = {"gradients": found.gradient_difference, "updates": found.update_difference}
    assert differences[kind] == pytest.approx(0.01)
    assert not found.passes(TOLERANCES["float32"])
    if kind == "gradients":
        assert found.gradient_parameter == f"{UP}[2]"


def test_losses_count_after_one_and_five_steps():
    found = row(measured(losses=(9, 2.002, 9, 9, 9, 2.02)))
    assert found.loss_differences == pytest.approx((0.001, 0.01))
    assert found.loss_difference == pytest.approx(0.01)


@pytest.mark.parametrize("kind", ["gradients", "updates"])
def test_an_expert_left_out_is_named_unless_no_token_reached_it(kind):
    found = row(measured(**{kind: with_expert(1, 0.0)}))
    assert found.untouched_parameters == [f"{UP}[1]"]
    assert not found.passes(Tolerance(math.inf, math.inf, math.inf))
    excused = row(measured(counts=(5, 0, 5), **{kind: with_expert(1, 0.0)}))
    assert (excused.untouched_parameters, excused.excused_experts) == ([], ["layers.1[1]"])


def test_a_whole_parameter_left_out_is_named_whatever_tokens_do():
    gradients = measured().gradients | {"norm.weight": np.zeros(2)}
    assert row(measured(counts=(0, 0, 0), gradients=gradients)).untouched_parameters == ["norm.weight"]


def test_what_is_no_number_is_out_of_tolerance():
    for changed in ({"losses": (1, math.nan, 1, 1, 1, 1)}, {"gradients": with_expert(0, math.nan)},
                    {"updates": with_expert(0, math.nan)}):
        assert not row(measured(**changed)).passes(Tolerance(math.inf, math.inf, math.inf)), changed


def test_stages_hold_parts_and_copies_are_all_compared():
    whole = measured()
    first = measured(gradients={UP: whole.gradients[UP]}, updates={UP: whole.updates[UP]})
    last = measured(gradients=whole.gradients | {"norm.weight": np.array([3.0, 4.4])})
    for order in ([first, last], [last, first]):
        found = row(*order)
        assert (found.gradient_parameter, found.gradient_difference) == ("norm.weight", pytest.approx(0.08))


def test_a_missing_parameter_is_no_row():
    with pytest.raises(AssertionError, match="norm.weight"):
        row(measured(gradients={UP: measured().gradients[UP]}))


def test_relative_differences_by_length():
    assert relative_difference(np.array([3.0, 4.5]), np.array([3.0, 4.0])) == pytest.approx(0.1)
    assert relative_difference(np.zeros(2), np.zeros(2)) == 0
    assert relative_difference(np.ones(2), np.zeros(2)) == math.inf


def test_the_expert_that_a_name_belongs_to():
    assert expert_of(f"{UP}[2]") == "layers.1[2]"
    assert expert_of("layers.0.branches.1.block.experts.down[0]") == "layers.0.branches.1[0]"
