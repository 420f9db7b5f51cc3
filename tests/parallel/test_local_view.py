"""A forward that sees local shards of DTensor parameters."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard

from parallel import Mesh, MeshSizes
from parallel.collectives import all_sum
from parallel.local_view import shard_parameters


class Wide(nn.Module):
    """y = sum of columns' tanh(x * scale W^T): W may be split by rows, each rank then gives its share of y."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.weight = nn.Parameter(torch.randn(6, 4, generator=generator, dtype=torch.float64))
        self.scale = nn.Parameter(torch.rand(4, generator=generator, dtype=torch.float64))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        assert not isinstance(self.weight, DTensor)
        self.rows_seen = self.weight.shape[0]
        return torch.tanh(F.linear(x * self.scale, self.weight)).sum()


def sharded_gradients(gradient_placement: str) -> dict[str, torch.Tensor]:
    mesh = Mesh(MeshSizes(tp=2), "cpu")
    module = Wide()
    placement = {"Partial": Partial(), "Replicate": Replicate()}[gradient_placement]
    shard_parameters(module, mesh.tp, {"weight": Shard(0)}, {"scale": placement})
    x = torch.arange(8, dtype=torch.float64).view(2, 4) / 10
    module(x).backward()
    assert module.rows_seen == 3
    assert isinstance(module.weight, DTensor) and "weight" not in module.__dict__
    return {name: parameter.grad.full_tensor() for name, parameter in module.named_parameters()}


def test_gradients_of_shares_equal_the_whole_and_a_wrong_placement_does_not(ranks):
    module = Wide()
    module(torch.arange(8, dtype=torch.float64).view(2, 4) / 10).backward()
    for got in ranks.run(2, sharded_gradients, "Partial"):
        for name, parameter in module.named_parameters():
            torch.testing.assert_close(got[name], parameter.grad, rtol=1e-13, atol=1e-13)
    wrong = ranks.run(2, sharded_gradients, "Replicate")[0]["scale"]
    assert not torch.allclose(wrong, module.scale.grad, rtol=0.1)


class Raises(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        raise KeyError(self.weight.shape[0])


def view_after_an_exception() -> bool:
    module = Raises()
    shard_parameters(module, Mesh(MeshSizes(tp=2), "cpu").tp, {"weight": Shard(0)})
    with pytest.raises(KeyError, match="2"):
        module(torch.ones(1))
    return isinstance(module.weight, DTensor)


def test_the_view_ends_when_the_forward_raises(ranks):
    assert ranks.run(2, view_after_an_exception) == [True, True]


def tie() -> tuple[bool, int, list]:
    mesh = Mesh(MeshSizes(tp=2), "cpu")
    first, second = nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)
    second.weight = first.weight
    model, shared = nn.Sequential(first, second), {}
    for module in model:
        shard_parameters(module, mesh.tp, {"weight": Shard(0)}, shared=shared)
    # Each rank uses its own rows twice; the gradients of both uses meet in the one parameter.
    y = F.linear(first(torch.ones(1, 4)), torch.ones(3, 2)).sum() + second(torch.ones(1, 4)).sum()
    y.backward()
    return first.weight is second.weight, len(list(model.parameters())), first.weight.grad.full_tensor().tolist()


def test_tied_parameters_stay_tied(ranks):
    assert ranks.run(2, tie) == [(True, 1, [[4.0] * 4] * 4)] * 2


def unknown_name() -> str:
    with pytest.raises(AssertionError) as error:
        shard_parameters(nn.Linear(2, 2), Mesh(MeshSizes(), "cpu").tp, {"wieght": Shard(0)})
    return str(error.value)


def test_a_rule_that_names_no_parameter_is_refused(ranks):
    assert "wieght" in ranks.run(1, unknown_name)[0]


def total_of_ones() -> float:
    return all_sum(torch.ones(()), Mesh(MeshSizes(tp=2), "cpu").stage.get_group()).item()


def test_a_stage_spans_its_tp_ranks(ranks):
    assert ranks.run(2, total_of_ones) == [2.0, 2.0]


def gradients_of_leaves() -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Of two forwards, between which the weight gets other memory: the gradient, and that of a plain module."""
    module, plain, found = Wide(), Wide(), []
    shard_parameters(module, Mesh(MeshSizes(), "cpu").dense_shards, {}, leaves=True)
    x = torch.arange(4, dtype=torch.float64)
    for factor in (1.0, 0.5):
        with torch.no_grad():
            module.weight._local_tensor = module.weight.to_local() * factor
            plain.weight *= factor
        for each in (module, plain):
            each.zero_grad()
            each(x).backward()
        found.append((module.weight.grad.to_local(), plain.weight.grad))
    return found


def test_a_leaf_follows_its_parameter_to_other_memory(ranks):
    for got, expected in ranks.run(1, gradients_of_leaves)[0]:
        torch.testing.assert_close(got, expected, rtol=0, atol=0)
