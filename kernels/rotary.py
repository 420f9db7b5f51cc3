"""Rotation of pairs of features, the two halves of a head paired.

B batch, S sequence, H heads, P head width, N rotated pairs of a head. R rows: the heads of all tokens.
"""

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from kernels.backend import runs_triton
from kernels.language import narrow, tl, triton, widen
from kernels.operator import operator

PAIRS_OF_A_PROGRAM = 2048
"""16 for each of 128 threads: two loads of 16 bytes from either half in bfloat16."""


def rotate_halves(x_BSHP: Tensor, cos_BS1N: Tensor, sin_BS1N: Tensor, backend: str = "auto") -> Tensor:
    """Rotate feature n of every head together with feature N + n, n < N, by the angle of given cosine and sine.

    Cosine and sine are of one dtype, float32 or wider, in which x is rotated; the result has x's. Their B is that of x,
    or 1. The features past 2N stay. Differentiable once, in x; the gradient is rotated back.
    """
    return _RotateHalves.apply(x_BSHP, cos_BS1N, sin_BS1N, backend)


class _RotateHalves(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, x_BSHP: Tensor, cos_BS1N: Tensor, sin_BS1N: Tensor, backend: str) -> Tensor:
        ctx.backend = backend
        ctx.save_for_backward(cos_BS1N, sin_BS1N)
        return _rotated(x_BSHP, cos_BS1N, sin_BS1N, 1.0, backend)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, dy_BSHP: Tensor) -> tuple[Tensor, None, None, None]:
        return _rotated(dy_BSHP, *ctx.saved_tensors, -1.0, ctx.backend), None, None, None


def _rotated(x_BSHP: Tensor, cos_BS1N: Tensor, sin_BS1N: Tensor, sign: float, backend: str) -> Tensor:
    """By the angle (sign 1), or back (sign -1)."""
    if runs_triton(backend, x_BSHP, cos_BS1N, sin_BS1N):
        x_BSHP = x_BSHP if x_BSHP.stride(3) == 1 else x_BSHP.contiguous()
        return _rotate(x_BSHP, cos_BS1N.contiguous(), sin_BS1N.contiguous(), sign)
    wide_BSHP, num_pairs = x_BSHP.to(cos_BS1N.dtype), cos_BS1N.shape[-1]
    turned_BSHP = torch.empty_like(wide_BSHP)
    (first, second, rest), (turned_first, turned_second, turned_rest) = (
        tensor.split([num_pairs, num_pairs, tensor.shape[-1] - 2 * num_pairs], -1)
        for tensor in (wide_BSHP, turned_BSHP)
    )
    turned_first.copy_(first).mul_(cos_BS1N).addcmul_(second, sin_BS1N, value=-sign)
    turned_second.copy_(second).mul_(cos_BS1N).addcmul_(first, sin_BS1N, value=sign)
    turned_rest.copy_(rest)
    return turned_BSHP.to(x_BSHP.dtype)


def _fake(x_BSHP: Tensor, cos_BS1N: Tensor, sin_BS1N: Tensor, sign: float) -> Tensor:
    return x_BSHP.new_empty(x_BSHP.shape)


@operator("rotate_halves", _fake)
def _rotate(x_BSHP: Tensor, cos_BS1N: Tensor, sin_BS1N: Tensor, sign: float) -> Tensor:
    y_BSHP = _fake(x_BSHP, cos_BS1N, sin_BS1N, sign)
    (num_sequences, seq_len, num_heads, width), num_pairs = x_BSHP.shape, cos_BS1N.shape[3]
    num_rows, block = num_sequences * seq_len * num_heads, triton.next_power_of_2(max(num_pairs, 1))
    rows = max(1, PAIRS_OF_A_PROGRAM // block)
    angles = 0 if len(cos_BS1N) < num_sequences else seq_len * num_pairs
    rotate_rows[(triton.cdiv(num_rows, rows),)](
        x_BSHP, cos_BS1N, sin_BS1N, y_BSHP, num_rows, seq_len, num_heads, *x_BSHP.stride()[:3], angles, sign,
        P=width, N=num_pairs, ROWS=rows, PAIRS=block, REST=triton.next_power_of_2(max(width - 2 * num_pairs, 1)),
        num_warps=4,
    )
    return y_BSHP


@triton.jit
def rotate_rows(
    x_BSHP, cos_BSN, sin_BSN, y_BSHP, num_rows, seq_len, H, stride_B, stride_S, stride_H, stride_angle_B, sign,
    P: tl.constexpr, N: tl.constexpr, ROWS: tl.constexpr, PAIRS: tl.constexpr, REST: tl.constexpr,
):
    """A program's rows, whole: read once, in any order of heads and tokens, and written one after the other."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)[:, None]
    token, head = row // H, row % H
    sequence, place = token // seq_len, token % seq_len
    x = x_BSHP + sequence.to(tl.int64) * stride_B + place.to(tl.int64) * stride_S + head * stride_H
    y, angle = y_BSHP + row.to(tl.int64) * P, sequence * stride_angle_B + place * N
    pair = tl.arange(0, PAIRS)[None, :]
    is_pair = (row < num_rows) & (pair < N)
    cos = widen(tl.load(cos_BSN + angle + pair, mask=is_pair, other=0.0))
    sin = widen(tl.load(sin_BSN + angle + pair, mask=is_pair, other=0.0)) * sign
    first = widen(tl.load(x + pair, mask=is_pair, other=0.0))
    second = widen(tl.load(x + N + pair, mask=is_pair, other=0.0))
    tl.store(y + pair, narrow(first * cos - second * sin, y_BSHP.dtype.element_ty), mask=is_pair)
    tl.store(y + N + pair, narrow(second * cos + first * sin, y_BSHP.dtype.element_ty), mask=is_pair)
    if 2 * N < P:
        column = 2 * N + tl.arange(0, REST)[None, :]
        is_there = (row < num_rows) & (column < P)
        tl.store(y + column, tl.load(x + column, mask=is_there, other=0.0), mask=is_there)
