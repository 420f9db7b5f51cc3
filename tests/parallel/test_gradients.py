"""Norm, clipping and finiteness of a gradient whose tensors lie on two meshes."""

import math

import pytest
import torch
from torch import nn
from torch.distributed.tensor import Shard

from parallel import Mesh, MeshSizes, clip_divisor, first_nonfinite_gradient, gradient_norm
from parallel.fsdp import expert_placement, precision, shard
from parallel.local_view import shard_parameters

LAYOUTS = [
    MeshSizes(), MeshSizes(dp_shard=2), MeshSizes(dp_replicate=2), MeshSizes(dp_shard=2, ep=2),
    MeshSizes(dp_replicate=2, dp_shard=2, ep=2), MeshSizes(dp_shard=4, ep=2), MeshSizes(dp_shard=4),
]


class Model(nn.Module):
    """A dense part of an odd size, and a stack of experts."""

    def __init__(self, num_experts: int) -> None:
        super().__init__()
        self.dense = nn.Linear(3, 5)
        self.experts = nn.Module()
        self.experts.up = nn.Parameter(torch.ones(num_experts, 4, 3))


def gradients(num_experts: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(p.shape, generator=generator) for name, p in Model(num_experts).named_parameters()}


def make(sizes: MeshSizes, num_experts: int = 2) -> tuple[Model, Mesh]:
    """The model sharded as a language model is, with the whole gradients above, each rank holding its part."""
    mesh, model = Mesh(sizes, "cpu"), Model(num_experts)
    shard_parameters(model.experts, mesh.ep, {"up": Shard(0)})
    shard(model.experts, mesh.expert_shards, precision(torch.float32), True, expert_placement(mesh.expert_dp.size()))
    shard(model, mesh.dense_shards, precision(torch.float32), False, apart=[model.experts])
    for name, parameter in model.named_parameters():
        parameter.grad = distribute_like(gradients(num_experts)[name], parameter)
    return model, mesh


def distribute_like(whole: torch.Tensor, parameter: nn.Parameter) -> torch.Tensor:
    """The part of a whole gradient that a rank holds of a parameter, found by marking every element with its place."""
    from torch.distributed.tensor import DTensor

    places = torch.arange(whole.numel(), dtype=torch.float32).view_as(whole)
    with torch.no_grad():
        parameter.copy_(DTensor.from_local(places, parameter.device_mesh, run_check=False).redistribute(
            parameter.device_mesh, parameter.placements))
    local = whole.flatten()[parameter.to_local().long()]
    return DTensor.from_local(local, parameter.device_mesh, parameter.placements, run_check=False,
                              shape=whole.shape, stride=whole.stride())


def norm_and_clipped(sizes: MeshSizes, num_experts: int, max_norm: float) -> tuple[float, dict[str, torch.Tensor]]:
    model, mesh = make(sizes, num_experts)
    norm = gradient_norm(model.parameters(), mesh)
    divisor = clip_divisor(norm, max_norm)
    return norm.item(), {name: p.grad.full_tensor() / divisor for name, p in model.named_parameters()}


@pytest.mark.parametrize("sizes", LAYOUTS, ids=lambda s: "x".join(f"{a}{d}" for a, d in vars(s).items() if d > 1))
@pytest.mark.parametrize("num_experts, max_norm", [(2, 0.5), (4, 0.5), (4, 100.0)])
def test_norm_and_clipping_equal_one_rank(ranks, sizes, num_experts, max_norm):
    """With two experts some layouts shard within an expert, with four within the run of experts of an ep rank."""
    whole = gradients(num_experts)
    norm = math.sqrt(sum(g.double().square().sum().item() for g in whole.values()))
    for got, clipped in ranks.run(sizes.world, norm_and_clipped, sizes, num_experts, max_norm):
        assert got == pytest.approx(norm, rel=1e-6)
        for name, gradient in whole.items():
            torch.testing.assert_close(clipped[name], gradient * min(1.0, max_norm / norm), rtol=1e-5, atol=1e-7)


def name_the_bad(where: str, value: float) -> tuple[str | None, bool]:
    """Spoil the last element that the last rank to hold one holds of a parameter."""
    model, mesh = make(MeshSizes(dp_shard=4, ep=2))
    if where:
        local = dict(model.named_parameters())[where].grad.to_local()
        if local.numel() and mesh.stage.get_local_rank() >= 2:
            local.view(-1)[-1] = value
    return (first_nonfinite_gradient(model.named_parameters()),
            bool(gradient_norm(model.parameters(), mesh).isfinite()))


@pytest.mark.parametrize("where", ["dense.weight", "experts.up"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_bad_value_on_some_ranks_is_seen_and_named_on_all(ranks, where, value):
    assert ranks.run(4, name_the_bad, where, value) == [(where, False)] * 4


def test_a_good_gradient_has_no_culprit(ranks):
    assert ranks.run(4, name_the_bad, "", 0.0) == [(None, True)] * 4


def norm_of_many(num: int) -> float:
    parameter = nn.Parameter(torch.zeros(num))
    mesh, holder = Mesh(MeshSizes(), "cpu"), nn.Module()
    holder.weight = parameter
    shard_parameters(holder, mesh.ep, {})
    grad = torch.randn(num, generator=torch.Generator().manual_seed(0))
    holder.weight.grad = distribute_like(grad, holder.weight)
    return gradient_norm([holder.weight], mesh).item() / grad.double().norm().item() - 1


def test_a_large_tensor_is_summed_as_exactly_as_its_parts(ranks):
    """Summed in float32 it is off by 3e-5, by less where ranks hold parts: clipping would depend on the layout."""
    (error,) = ranks.run(1, norm_of_many, 2_000_000)
    assert abs(error) < 1e-9
