"""Root-mean-square normalisation.

R rows, W width.
"""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable


def rms_norm(x: Tensor, weight_W: Tensor, eps: float) -> Tensor:
    """x / sqrt(mean(x^2) + eps) * weight over the last dim (https://arxiv.org/abs/1910.07467, Eq. 4).

    x: [..., W], weight [W] of the same dtype, float32 or float64. PyTorch's own on a GPU and for its compiler. On the
    CPU PyTorch composes it of small operations, whose backward takes three times as long as this one, which is
    differentiable once.
    """
    if x.device.type != "cpu" or torch.compiler.is_compiling():
        return F.rms_norm(x, weight_W.shape, weight_W, eps)
    return _RMSNorm.apply(x, weight_W, eps)


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, weight_W: Tensor, eps: float) -> Tensor:
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        inverse = norm.square_().div_(x.shape[-1]).add_(eps).rsqrt_()
        ctx.save_for_backward(x, weight_W, inverse)
        return (x * inverse).mul_(weight_W)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, weight_W, inverse = ctx.saved_tensors
        product = dy * x
        product_RW = product.reshape(-1, x.shape[-1])
        dweight_W = inverse.flatten() @ product_RW
        # d inverse / d x = -inverse^3 x / W
        factor = (product_RW @ weight_W).view_as(inverse) * inverse.pow(3) / -x.shape[-1]
        # Memory just written is in cache, a fresh tensor is not.
        dx = torch.mul(dy, weight_W, out=product)
        return dx.mul_(inverse).addcmul_(x, factor), dweight_W, None
