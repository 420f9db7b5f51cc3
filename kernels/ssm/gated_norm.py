"""Root-mean-square normalisation of a gated input, by groups of channels, as Mamba-2 closes with.

R rows, I channels, G groups of W channels, P programs.
"""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from kernels.backend import runs_triton
from kernels.language import narrow, tl, triton, widen
from kernels.operator import operator

ROWS = 16
"""Rows of a program, whose shares of the weight's gradient it sums."""

MOST_WIDTH = 8192
"""Channels of a group of Triton's body, of which a program holds a row in registers; PyTorch's takes any number."""


def gated_rms_norm(
    y: Tensor, z: Tensor, weight_I: Tensor, group_size: int, eps: float, backend: str = "auto"
) -> Tensor:
    """RMSNorm of y * silu(z) over runs of group_size channels, times weight (https://arxiv.org/abs/2405.21060, 7.1).

    y, z: [..., I] of one float dtype, in which the result is; I is a multiple of group_size. weight_I: float32 at
    least. Arithmetic is float32 at least. Triton's body keeps y, z and weight for the backward, and nothing else.
    """
    if group_size <= MOST_WIDTH and runs_triton(backend, y, z, weight_I):
        return _GatedRMSNorm.apply(y.contiguous(), z.contiguous(), weight_I.contiguous(), group_size, eps)
    wide = torch.promote_types(y.dtype, torch.float32)
    gated = y.to(wide) * F.silu(z.to(wide))
    normed = F.rms_norm(gated.unflatten(-1, (-1, group_size)), (group_size,), eps=eps).flatten(-2)
    return (normed * weight_I.to(wide)).to(y.dtype)


class _GatedRMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, y: Tensor, z: Tensor, weight_I: Tensor, group_size: int, eps: float) -> Tensor:
        ctx.save_for_backward(y, z, weight_I)
        ctx.group_size, ctx.eps = group_size, eps
        return _forward(y, z, weight_I, group_size, eps)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, dout: Tensor) -> tuple[Tensor | None, ...]:
        y, z, weight_I = ctx.saved_tensors
        dy, dz, shares_PI = _backward(dout.contiguous(), y, z, weight_I, ctx.group_size, ctx.eps)
        return dy, dz, shares_PI.sum(0).to(weight_I.dtype), None, None


def _grid(y: Tensor, group_size: int) -> tuple[int, int]:
    num_channels = y.shape[-1]
    return triton.cdiv(y.numel() // num_channels, ROWS), num_channels // group_size


def _sizes(y: Tensor, group_size: int) -> dict[str, int]:
    block = triton.next_power_of_2(group_size)
    return {"W": group_size, "BLOCK": block, "ROWS": ROWS, "num_warps": min(32, max(1, block // 256))}


@operator("gated_rms_norm", lambda y, z, weight_I, group_size, eps: torch.empty_like(y))
def _forward(y: Tensor, z: Tensor, weight_I: Tensor, group_size: int, eps: float) -> Tensor:
    out, num_channels = torch.empty_like(y), y.shape[-1]
    gated_norm_forward[_grid(y, group_size)](
        y, z, weight_I, out, y.numel() // num_channels, num_channels, eps, **_sizes(y, group_size)
    )
    return out


def _fake_backward(
    dout: Tensor, y: Tensor, z: Tensor, weight_I: Tensor, group_size: int, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    num_programs = -(-(y.numel() // y.shape[-1]) // ROWS)
    shares_PI = y.new_empty(num_programs, y.shape[-1], dtype=torch.float32)
    return torch.empty_like(y), torch.empty_like(y), shares_PI


@operator("gated_rms_norm_backward", _fake_backward)
def _backward(
    dout: Tensor, y: Tensor, z: Tensor, weight_I: Tensor, group_size: int, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of y and z, and each program's share of the weight's: float32 [P, I]."""
    dy, dz, shares_PI = _fake_backward(dout, y, z, weight_I, group_size, eps)
    gated_norm_backward[_grid(y, group_size)](
        dout, y, z, weight_I, dy, dz, shares_PI, y.numel() // y.shape[-1], y.shape[-1], eps, **_sizes(y, group_size)
    )
    return dy, dz, shares_PI


@triton.jit(do_not_specialize=["num_rows"])
def gated_norm_forward(
    y_RI, z_RI, weight_I, out_RI, num_rows, num_channels, eps, W: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr
):
    """A program normalises ROWS rows of one group."""
    lane = tl.arange(0, BLOCK)
    channel = tl.program_id(1) * W + lane
    weight = tl.load(weight_I + channel, mask=lane < W, other=0.0)
    for step in range(ROWS):
        row = tl.program_id(0).to(tl.int64) * ROWS + step
        mask, offset = lane < tl.where(row < num_rows, W, 0), row * num_channels + channel
        y, z = widen(tl.load(y_RI + offset, mask=mask, other=0.0)), widen(tl.load(z_RI + offset, mask=mask, other=0.0))
        gated = y * z * tl.sigmoid(z)
        inverse = tl.rsqrt(tl.sum(gated * gated, 0) / W + eps)
        tl.store(out_RI + offset, narrow(gated * inverse * weight, out_RI.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["num_rows"])
def gated_norm_backward(
    dout_RI, y_RI, z_RI, weight_I, dy_RI, dz_RI, shares_PI, num_rows, num_channels, eps,
    W: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr,
):
    """dgated = inverse (weight dout - gated inverse^2 mean(weight dout gated)); the rest is the chain rule."""
    lane = tl.arange(0, BLOCK)
    channel = tl.program_id(1) * W + lane
    share = tl.zeros((BLOCK,), tl.float32)
    for step in range(ROWS):
        row = tl.program_id(0).to(tl.int64) * ROWS + step
        mask, offset = lane < tl.where(row < num_rows, W, 0), row * num_channels + channel
        y, z = widen(tl.load(y_RI + offset, mask=mask, other=0.0)), widen(tl.load(z_RI + offset, mask=mask, other=0.0))
        dout = widen(tl.load(dout_RI + offset, mask=mask, other=0.0))
        weight = tl.load(weight_I + channel, mask=lane < W, other=0.0)
        gated = y * z * tl.sigmoid(z)
        inverse = tl.rsqrt(tl.sum(gated * gated, 0) / W + eps)
        share += dout * gated * inverse
        slope = inverse * inverse * (tl.sum(dout * weight * gated, 0) / W)
        # A second time, out of the cache, and for the last: what is held meanwhile would not fit into registers.
        y = widen(tl.load(y_RI + offset, mask=mask, other=0.0, eviction_policy="evict_first"))
        z = widen(tl.load(z_RI + offset, mask=mask, other=0.0, eviction_policy="evict_first"))
        dout = widen(tl.load(dout_RI + offset, mask=mask, other=0.0, eviction_policy="evict_first"))
        weight = tl.load(weight_I + channel, mask=lane < W, other=0.0, eviction_policy="evict_last")
        sigmoid = tl.sigmoid(z)
        silu = z * sigmoid
        dgated = inverse * (dout * weight - y * silu * slope)
        tl.store(dy_RI + offset, narrow(dgated * silu, dy_RI.dtype.element_ty), mask=mask)
        dz = dgated * y * sigmoid * (1 + z - silu)
        tl.store(dz_RI + offset, narrow(dz, dz_RI.dtype.element_ty), mask=mask)
    tl.store(shares_PI + tl.program_id(0) * num_channels + channel, share, mask=lane < W)
