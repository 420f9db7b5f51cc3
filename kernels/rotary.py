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
    num_pairs, head_dim = cos_BS1N.shape[-1], x_BSHP.shape[-1]
    parts = [num_pairs, num_pairs, head_dim - 2 * num_pairs]
    y_BSHP = torch.empty_like(x_BSHP, memory_format=torch.contiguous_format)
    (first, second, rest), (y_first, y_second, y_rest) = x_BSHP.split(parts, -1), y_BSHP.split(parts, -1)
    torch.mul(first, cos_BS1N, out=y_first).addcmul_(second, sin_BS1N, value=-1)
    torch.mul(second, cos_BS1N, out=y_second).addcmul_(first, sin_BS1N)
    y_rest.copy_(rest)
    return y_BSHP
