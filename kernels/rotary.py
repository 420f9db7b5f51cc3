"""Rotation of pairs of features, the two halves of a head paired.

B batch, S sequence, H heads, P head width, N rotated pairs of a head.
"""

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable


def rotate_halves(x_BSHP: Tensor, cos_BS1N: Tensor, sin_BS1N: Tensor) -> Tensor:
    """Rotate feature n of every head together with feature N + n, n < N, by the angle of given cosine and sine.

    All of one dtype; B of cosine and sine is that of x, or 1. The features past 2N stay. Differentiable once, in x; the
    gradient is rotated back.
    """
    return _RotateHalves.apply(x_BSHP, cos_BS1N, sin_BS1N)


class _RotateHalves(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, x_BSHP: Tensor, cos_BS1N: Tensor, sin_BS1N: Tensor) -> Tensor:
        ctx.save_for_backward(cos_BS1N, sin_BS1N)
        return _rotated(x_BSHP, cos_BS1N, sin_BS1N)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, dy_BSHP: Tensor) -> tuple[Tensor, None, None]:
        cos_BS1N, sin_BS1N = ctx.saved_tensors
        return _rotated(dy_BSHP, cos_BS1N, -sin_BS1N), None, None


def _rotated(x_BSHP: Tensor, cos_BS1N: Tensor, sin_BS1N: Tensor) -> Tensor:
    num_pairs = cos_BS1N.shape[-1]
    turned_BSHP = torch.empty_like(x_BSHP)
    (first, second, rest), (turned_first, turned_second, turned_rest) = (
        tensor.split([num_pairs, num_pairs, tensor.shape[-1] - 2 * num_pairs], -1) for tensor in (x_BSHP, turned_BSHP)
    )
    turned_first.copy_(first).mul_(cos_BS1N).addcmul_(second, sin_BS1N, value=-1)
    turned_second.copy_(second).mul_(cos_BS1N).addcmul_(first, sin_BS1N)
    turned_rest.copy_(rest)
    return turned_BSHP
