"""Laws side by side: what experts save, ranges, coefficients by name."""

import pytest

from framework.errors import UserError
from framework.laws import compare


def savings(*words):
    return [row[-1] for row in compare(words).savings]


def test_flops_that_experts_save():
    """2402.07871 with rounded coefficients: 21.3 times at 1e20, 32 at 1e25; granularity alone 1.89 and 2.24."""
    assert savings("fine_grained_dense", "fine_grained", "flops=1e20,1e25") == pytest.approx([21.3, 32], rel=0.01)
    coarse = ("fine_grained,granularity=1", "fine_grained", "flops=1e20,1e25")
    assert savings(*coarse) == pytest.approx([1.89, 2.24], rel=0.01)


def test_the_first_curve_saves_nothing_and_may_never_get_there():
    found = compare(["joint,num_experts=1", "chinchilla", "joint,num_experts=8", "flops=1e20..1e22"])
    assert len(found.points) == 3 and found.points[1] == pytest.approx(1e21)
    assert [row[0] for row in found.savings] == pytest.approx([1, 1, 1])
    assert all(row[2] > 1 for row in found.savings)
    assert compare(["chinchilla", "fine_grained", "flops=1e24,1e25"]).savings[0][1] is None


def test_a_range_of_another_number_predicts():
    found = compare(["joint,num_experts=1", "joint@table_3,num_experts=1", "chinchilla", "num_params_active=1e9",
                     "tokens=1e9,1e10,1e11"])
    losses = [[answer.values["loss"] for answer in row] for row in found.answers]
    assert not found.savings and [row[0] for row in losses] == sorted((row[0] for row in losses), reverse=True)
    assert all(0 < abs(row[0] - row[1]) < 0.002 for row in losses)
    assert found.plain()["rows"][0]["curves"][2]["law"] == "chinchilla"


@pytest.mark.parametrize("words", [
    ["joint"], ["flops=1e20,1e21"], ["joint", "flops=1e21..1e20"], ["joint", "flops=1e20"], ["joint", "flops=a..b"],
    ["joint", "flops=1e20..1e21", "tokens=1e9,2e9"], ["joint", "flops=1e20..1e22", "granularity=2"],
    ["nothing", "flops=1e20..1e21"], ["joint@nowhere.json", "flops=1e20..1e21"], ["joint", "flops=0..1"],
    ["learning_rate", "num_params_active=1e8,1e9"], ["joint,num_experts", "flops=1e20..1e21"],
    ["joint", "flops=1e20..1e21..1e22..1e21"], ["kaplan", "num_experts=1,2"],
])
def test_mistakes(words):
    with pytest.raises(UserError, match="allowed"):
        compare(words)
