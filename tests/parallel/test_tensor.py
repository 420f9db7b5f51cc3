"""The pieces of tensor parallelism on plain modules: boundaries, groups that heads read, statistics over ranks."""

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from parallel.tensor import gather_input, normalize_groups, pick_groups, scatter_output, sum_output

SHAPE = (2, 3, 24)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def whole_norm(x: Tensor, group_size: int) -> Tensor:
    groups = x.unflatten(-1, (-1, group_size))
    return (groups / (groups.square().mean(-1, keepdim=True) + 0.1).sqrt()).flatten(-2)


def split_norm(group_size: int) -> tuple[Tensor, Tensor]:
    rank, size = dist.get_rank(), dist.get_world_size()
    x = random(*SHAPE).chunk(size, -1)[rank].clone().requires_grad_()
    y = normalize_groups(x, group_size, 0.1, dist.group.WORLD)
    (y * random(*SHAPE, seed=1).chunk(size, -1)[rank]).sum().backward()
    return y.detach(), x.grad


# 24 channels over 4 ranks of 6: one group over all, over two ranks, in parts of 2 and 4, one a rank, two a rank.
@pytest.mark.parametrize("group_size", [24, 12, 8, 6, 3])
def test_groups_are_normalised_whichever_ranks_hold_them(ranks, group_size):
    x = random(*SHAPE).requires_grad_()
    expected = whole_norm(x, group_size)
    (expected * random(*SHAPE, seed=1)).sum().backward()
    results = ranks.run(4, split_norm, group_size)
    torch.testing.assert_close(torch.cat([y for y, _ in results], -1), expected.detach(), rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(torch.cat([dx for _, dx in results], -1), x.grad, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize(("num_heads", "num_groups", "num_ranks"), [
    (8, 1, 2), (8, 2, 4), (8, 4, 8), (12, 3, 2), (12, 3, 4), (12, 6, 4), (30, 3, 5), (8, 8, 4), (12, 2, 3),
])
def test_local_heads_read_the_groups_that_they_read_on_one_rank(num_heads, num_groups, num_ranks):
    """As attention and the scan do: with E entries for L heads, head h reads entry h // (L / E)."""
    groups = torch.arange(num_groups).view(1, 1, -1, 1)
    num_local = num_heads // num_ranks
    for rank in range(num_ranks):
        entries = pick_groups(num_heads, num_groups, rank, num_ranks, "cpu")(groups).flatten()
        assert num_local % len(entries) == 0
        read = entries.repeat_interleave(num_local // len(entries))
        heads = torch.arange(rank * num_local, (rank + 1) * num_local)
        assert torch.equal(read, heads // (num_heads // num_groups))


def test_no_group_is_picked_twice_where_every_rank_reads_its_groups_equally_often():
    groups = torch.arange(2).view(1, 1, -1, 1)
    assert pick_groups(8, 2, 3, 4, "cpu")(groups).flatten().tolist() == [1]
    assert pick_groups(12, 3, 0, 4, "cpu")(torch.arange(3).view(1, 1, -1, 1)).flatten().tolist() == [0, 0, 0]
    assert pick_groups(12, 3, 0, 2, "cpu")(torch.arange(3).view(1, 1, -1, 1)).flatten().tolist() == [0, 0, 0, 0, 1, 1]


class Split(nn.Module):
    """down(middle(up(x))), on each rank a part of the width of `up` and `down`; `middle` sums over it."""

    def __init__(self, rank: int, size: int) -> None:
        super().__init__()
        self.up, self.middle, self.down = (nn.Linear(4, 4, bias=False, dtype=torch.float64) for _ in range(3))
        for seed, (linear, dim) in enumerate([(self.up, 0), (self.middle, 1), (self.down, 1)]):
            linear.weight = nn.Parameter(random(4, 4, seed=seed).chunk(size, dim)[rank].clone())
        self.rank, self.size = rank, size

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        up = self.up(x) + bias
        middle = self.middle(up).tanh()
        return self.down(up * middle.chunk(self.size, -1)[self.rank])


def through_boundaries() -> tuple[Tensor, Tensor, list[Tensor]]:
    rank, size = dist.get_rank(), dist.get_world_size()
    split = Split(rank, size)
    gather_input(split, dist.group.WORLD)
    scatter_output(split, dist.group.WORLD)
    sum_output(split.middle, dist.group.WORLD)
    x = random(2, 6, 4, seed=7).chunk(size, 1)[rank].clone().requires_grad_()
    y = split(x, torch.ones((), dtype=torch.float64))
    (y * random(2, 6, 4, seed=8).chunk(size, 1)[rank]).sum().backward()
    return y.detach(), x.grad, [parameter.grad for parameter in split.parameters()]


def test_a_split_module_between_sequence_shards_equals_the_whole_one(ranks):
    whole, x = Split(0, 1), random(2, 6, 4, seed=7).requires_grad_()
    expected = whole(x, torch.ones((), dtype=torch.float64))
    (expected * random(2, 6, 4, seed=8)).sum().backward()
    results = ranks.run(2, through_boundaries)
    torch.testing.assert_close(torch.cat([y for y, _, _ in results], 1), expected.detach(), rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(torch.cat([dx for _, dx, _ in results], 1), x.grad, rtol=1e-12, atol=1e-13)
    for index, (parameter, dim) in enumerate(zip(whole.parameters(), (0, 1, 1), strict=True)):
        gradient = torch.cat([gradients[index] for _, _, gradients in results], dim)
        torch.testing.assert_close(gradient, parameter.grad, rtol=1e-12, atol=1e-13)
