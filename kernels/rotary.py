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
    first, second, rest = x_BSHP.split([num_pairs, num_pairs, head_dim - 2 * num_pairs], -1)
    cos, sin = torch.cat((cos_BS1N, cos_BS1N), -1), torch.cat((-sin_BS1N, sin_BS1N), -1)
    turned = (x_BSHP[..., : 2 * num_pairs] * cos).addcmul_(torch.cat((second, first), -1), sin)
    return torch.cat((turned, rest), -1) if rest.shape[-1] else turned
