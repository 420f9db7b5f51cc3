"""Boundaries between ranks: differentiable collectives, and sums and maxima of statistics.

Gradients are summed over ranks, never averaged, as every rank's loss is its share of the whole. The same collectives
must run on every rank of the group, in the same order, with zero rows where a rank has none.
"""

import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as functional
from torch import Tensor

# torch 2.13 renamed two functions, and warns at each call of the old ones.
_gather = getattr(functional, "all_gather_single", None) or functional.all_gather_tensor
_reduce_scatter = getattr(functional, "reduce_scatter_single", None) or functional.reduce_scatter_tensor


class _AllGather(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, dim: int, group: dist.ProcessGroup) -> Tensor:
        ctx.dim, ctx.group = dim, group
        return functional.wait_tensor(_gather(x.contiguous(), dim, group))

    @staticmethod
    def backward(ctx, gradient: Tensor):
        return functional.wait_tensor(_reduce_scatter(gradient.contiguous(), "sum", ctx.dim, ctx.group)), None, None


class _ReduceScatter(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, dim: int, group: dist.ProcessGroup) -> Tensor:
        ctx.dim, ctx.group = dim, group
        return functional.wait_tensor(_reduce_scatter(x.contiguous(), "sum", dim, group))

    @staticmethod
    def backward(ctx, gradient: Tensor):
        return functional.wait_tensor(_gather(gradient.contiguous(), ctx.dim, ctx.group)), None, None


class _AllReduce(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        return all_sum(x, group)

    @staticmethod
    def backward(ctx, gradient: Tensor):
        return all_sum(gradient, ctx.group), None


class _AllToAll(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, received: list[int] | None, sent: list[int] | None, group: dist.ProcessGroup) -> Tensor:
        ctx.received, ctx.sent, ctx.group = received, sent, group
        return exchange(x, received, sent, group)

    @staticmethod
    def backward(ctx, gradient: Tensor):
        return exchange(gradient, ctx.sent, ctx.received, ctx.group), None, None, None


def all_gather(x: Tensor, dim: int, group: dist.ProcessGroup) -> Tensor:
    """Concatenate every rank's `x` (equal shapes) along `dim`. Backward: reduce-scatter."""
    return _AllGather.apply(x, dim, group)


def reduce_scatter(x: Tensor, dim: int, group: dist.ProcessGroup) -> Tensor:
    """Sum `x` over ranks and keep this rank's equal part of `dim`. Backward: all-gather."""
    return _ReduceScatter.apply(x, dim, group)


def all_reduce(x: Tensor, group: dist.ProcessGroup) -> Tensor:
    """Sum `x` over ranks, each of which uses the sum for a part of what follows. Backward: the sum of gradients."""
    return _AllReduce.apply(x, group)


def all_to_all(x: Tensor, received: list[int], sent: list[int], group: dist.ProcessGroup) -> Tensor:
    """Send the first sent[0] rows of `x` to rank 0, the next sent[1] to rank 1, and so on.

    Returns the rows that came in, received[r] of them from rank r, in the order of ranks. Either may hold zeros.
    Backward: the exchange in the other direction.
    """
    return _AllToAll.apply(x, received, sent, group)


def swap_sharded_dim(x: Tensor, split_dim: int, gather_dim: int, group: dist.ProcessGroup) -> Tensor:
    """Move the sharding of `x` from `gather_dim` to `split_dim` (DeepSpeed-Ulysses, Jacobs et al. 2023).

    Each rank holds an equal part of gather_dim and all of split_dim before, the other way round afterwards.
    Backward: the swap in the other direction.
    """
    parts = torch.stack(x.chunk(group.size(), split_dim))
    return torch.cat(_AllToAll.apply(parts, None, None, group).unbind(0), gather_dim)


def exchange(x: Tensor, received: list[int] | None, sent: list[int] | None, group: dist.ProcessGroup) -> Tensor:
    """The all-to-all of `all_to_all`, without a gradient. None: equal parts."""
    return functional.wait_tensor(functional.all_to_all_single(x.contiguous(), received, sent, group))


def all_sum(x: Tensor, group: dist.ProcessGroup) -> Tensor:
    """The sum of `x` over the ranks of a group, without a gradient; `x` stays as it is."""
    return functional.wait_tensor(functional.all_reduce(x.detach().contiguous(), "sum", group))


def all_max(x: Tensor, group: dist.ProcessGroup) -> Tensor:
    """The largest of the ranks' `x`, element by element, without a gradient; `x` stays as it is."""
    return functional.wait_tensor(functional.all_reduce(x.detach().contiguous(), "max", group))
