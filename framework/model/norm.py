"""Normalisations over the last dim, with statistics in float32 at least."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from framework.parametrization.roles import Declaration, Role, add_parameter, constant
from kernels import rms_norm


def _statistics_dtype(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * weight (https://arxiv.org/abs/1910.07467, Eq. 4), weight float32 [width].

    Parallelism from outside replaces `normalize` where a rank holds part of the width.
    """

    def __init__(self, width: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.normalize: Callable[[Tensor, Tensor, float], Tensor] = rms_norm
        add_parameter(self, "weight", (width,), Declaration(Role.NORM, init=constant(1.0)))

    def forward(self, x: Tensor) -> Tensor:
        """x: any float dtype [..., width] -> the same shape and dtype."""
        dtype = _statistics_dtype(x)
        return self.normalize(x.to(dtype), self.weight.to(dtype), self.eps).to(x.dtype)


class LayerNorm(nn.Module):
    """(x - mean) / sqrt(variance + eps) * weight + bias, both float32 [width]."""

    def __init__(self, width: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        add_parameter(self, "weight", (width,), Declaration(Role.NORM, init=constant(1.0)))
        add_parameter(self, "bias", (width,), Declaration(Role.BIAS, init=constant(0.0)))

    def forward(self, x: Tensor) -> Tensor:
        """x: any float dtype [..., width] -> the same shape and dtype."""
        dtype = _statistics_dtype(x)
        y = F.layer_norm(x.to(dtype), (x.shape[-1],), self.weight.to(dtype), self.bias.to(dtype), self.eps)
        return y.to(x.dtype)


def make_norm(kind: str, width: int, eps: float) -> RMSNorm | LayerNorm:
    """The norm that a recipe names: rmsnorm or layernorm."""
    return {"rmsnorm": RMSNorm, "layernorm": LayerNorm}[kind](width, eps)
