"""Passing a tensor to another rank of a group while one comes in: the same calls on gloo and NCCL."""

from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor


def pass_on(x: Tensor, shift: int, group: dist.ProcessGroup) -> Callable[[], Tensor]:
    """Start sending `x` to rank + shift, round the group; the function returned waits for what rank - shift sent.

    All ranks call it in the same order, with the same shift and equal shapes. `x` must not change before the wait.
    """
    size, rank = group.size(), group.rank()
    if shift % size == 0:
        return lambda: x
    x = x.contiguous()
    arriving = torch.empty_like(x)
    works = dist.batch_isend_irecv([
        dist.P2POp(dist.isend, x, group=group, group_peer=(rank + shift) % size),
        dist.P2POp(dist.irecv, arriving, group=group, group_peer=(rank - shift) % size),
    ])

    def wait() -> Tensor:
        for work in works:
            work.wait()
        return arriving

    return wait


def from_previous(x: Tensor, group: dist.ProcessGroup) -> Tensor:
    """The previous rank's `x`; zeros on the first. Backward: the next rank's gradient; zeros on the last."""
    return _FromPrevious.apply(x, group)


class _FromPrevious(torch.autograd.Function):
    """Round the group, though nothing goes from the last rank to the first: so all ranks make the same calls."""

    @staticmethod
    def forward(ctx, x: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        received = pass_on(x, 1, group)()
        return torch.zeros_like(received) if group.rank() == 0 else received

    @staticmethod
    def backward(ctx, gradient: Tensor):
        received = pass_on(gradient, -1, ctx.group)()
        return torch.zeros_like(received) if ctx.group.rank() == ctx.group.size() - 1 else received, None
