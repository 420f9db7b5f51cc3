"""Sharding a module as one unit: sums instead of means, precision, and where experts are cut."""

import pytest
import torch
from torch import nn
from torch.distributed.tensor import DTensor, Shard

from parallel import Mesh, MeshSizes, set_gradient_sync
from parallel.fsdp import expert_placement, precision, shard


def summed_gradient(dtype: torch.dtype, sizes: MeshSizes) -> tuple[float, torch.dtype]:
    """The gradient of a weight that is 256 on the first rank and 1 on the second."""
    mesh, model = Mesh(sizes, "cpu"), nn.Linear(1, 1, bias=False)
    shard(model, mesh.dense_shards, precision(dtype), False)
    x = torch.full((1, 1), 256.0 if mesh.batch.get_local_rank() == 0 else 1.0, dtype=dtype)
    model(x).sum().backward()
    return model.weight.grad.full_tensor().item(), model.weight.grad.dtype


@pytest.mark.parametrize("sizes", [MeshSizes(dp_shard=2), MeshSizes(dp_replicate=2)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_are_summed_in_float32_and_never_divided(ranks, sizes, dtype):
    """bfloat16 has no 257."""
    assert ranks.run(2, summed_gradient, dtype, sizes) == [(257.0, torch.float32)] * 2


def accumulated(sizes: MeshSizes) -> list[float]:
    """A weight's gradient after each of three backwards of which the last is told to sum over ranks."""
    mesh, model = Mesh(sizes, "cpu"), nn.Linear(1, 1, bias=False)
    shard(model, mesh.dense_shards, precision(torch.float32), False, in_place=True)
    seen = []
    for last in (False, False, True):
        set_gradient_sync(model, last)
        model(torch.full((1, 1), mesh.batch.get_local_rank() + 1.0)).sum().backward()
        seen.append(0.0 if model.weight.grad is None else model.weight.grad.full_tensor().item())
    return seen


def test_gradients_of_micro_batches_meet_once(ranks):
    assert ranks.run(1, accumulated, MeshSizes()) == [[1.0, 2.0, 3.0]]
    assert ranks.run(2, accumulated, MeshSizes(dp_shard=2))[0] == [0.0, 0.0, 9.0]


class Stack(nn.Module):
    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.up = nn.Parameter(torch.arange(float(torch.Size(shape).numel())).view(shape))


def cut(shape: tuple[int, ...]) -> tuple[DTensor, bool]:
    mesh, stack = Mesh(MeshSizes(dp_shard=4), "cpu"), Stack(*shape)
    whole = stack.up.detach().clone()
    shard(stack, mesh.expert_shards, precision(torch.float32), True, expert_placement(4))
    return stack.up.placements, torch.equal(stack.up.detach().full_tensor(), whole)


@pytest.mark.parametrize("shape, dim", [
    ((8, 4, 3), 0), ((4, 4, 3), 0),
    ((2, 8, 3), 1),  # fewer experts than shards: each is cut
    ((2, 6, 3), 0),  # and where that is uneven, some ranks hold none
])
def test_experts_are_cut_between_them_or_else_within(ranks, shape, dim):
    assert ranks.run(4, cut, shape) == [((Shard(dim),), True)] * 4


def on_a_mesh_of_one() -> tuple[bool, bool]:
    model = nn.Linear(3, 3)
    before = model.weight.data_ptr()
    shard(model, Mesh(MeshSizes(), "cpu").dense_shards, precision(torch.float32), True, in_place=True)
    model(torch.ones(1, 3)).sum().backward()
    return model.weight.to_local().data_ptr() == before, isinstance(model.weight.grad, DTensor)


def test_on_one_rank_weights_are_dtensors_that_stay_where_they_were(ranks):
    assert ranks.run(1, on_a_mesh_of_one) == [(True, True)]
