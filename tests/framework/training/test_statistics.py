"""What is told of the use of experts."""

import math

import pytest
import torch
from torch import nn

from framework.training.statistics import ExpertStatistics, ExpertUse, normalised_entropy


class Counted(nn.Module):
    """Stands for a mixture-of-experts layer."""

    def __init__(self, *counts: float):
        super().__init__()
        self.counts, self.seen = torch.tensor(counts), None

    def take_statistics(self):
        return {"tokens_per_expert_E": self.counts, "dropped": torch.tensor(2.0),
                "load_balance_loss": torch.tensor(0.25), "z_loss": torch.tensor(0.5)}

    def update_selection_bias(self, tokens_per_expert_E):
        self.seen = tokens_per_expert_E


def test_vector_and_back():
    model = nn.Module()
    model.layers = nn.ModuleList([nn.Module(), nn.Module()])
    model.layers[0].block, model.layers[1].block = Counted(1, 3), Counted(0, 4, 4)
    statistics = ExpertStatistics(model)
    vector, fields = statistics.take(torch.device("cpu"))
    use = statistics.read(vector * 2, fields)  # two ranks with the same numbers
    assert {name: counts.tolist() for name, counts in use.tokens_per_expert_E.items()} == {
        "layers.0": [2, 6], "layers.1": [0, 8, 8]}
    assert (use.dropped, use.load_balance_loss, use.z_loss) == (8.0, 1.0, 2.0)
    statistics.update_selection_biases(use)
    assert model.layers[1].block.seen.tolist() == [0, 8, 8]
    row = use.row()
    assert row["expert_load_max"] == pytest.approx(1.5) and row["expert_load_min"] == 0
    expected = -(0.25 * math.log(0.25) + 0.75 * math.log(0.75)) / math.log(2)
    assert row["expert_entropy"] == pytest.approx((expected + math.log(2) / math.log(3)) / 2)
    assert row["dropped_fraction"] == pytest.approx(8 / 24)
    assert use.shares()["layers.0"] == [0.25, 0.75]


def test_entropy():
    assert normalised_entropy(torch.full((8,), 1 / 8)) == pytest.approx(1)
    assert normalised_entropy(torch.eye(8)[0]) == 0


def test_a_model_without_experts():
    statistics = ExpertStatistics(nn.Linear(2, 2))
    assert statistics.read(*statistics.take(torch.device("cpu"))).row() == {}
    assert ExpertUse({}).shares() == {}
