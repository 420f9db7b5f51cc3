"""Rows of tokens: copied from them, and summed back to them.

T tokens, D model width, M rows, each of one token.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from kernels.backend import runs_triton
from kernels.language import INTERPRETING, narrow, tl, triton, widen
from kernels.operator import operator

WARPS = 2
COLUMNS = 128 if INTERPRETING else WARPS * 32 * 8
"""Columns of a program: 16 bytes a thread in bfloat16, so that a thread has its columns of all of a token's rows."""

COPIED_ROWS = 16 if INTERPRETING else 4
"""Rows of a program that copies."""

WEIGHTED_ROWS = 8 if INTERPRETING else 1
"""Rows of a program that copies them times a weight; Triton 3.6 spills with more."""


class TokenRows(NamedTuple):
    """Which rows a token has: row_M[start_T1[t] : start_T1[t + 1]] are those of token t, in the order of their sum.

    int64, both.
    """

    start_T1: Tensor
    row_M: Tensor


def rows_of_tokens(token_M: Tensor, num_tokens: int, num_rows: Tensor | None = None) -> TokenRows:
    """The rows of each token, given each row's token (int64). The host waits for nothing.

    num_rows: int64 scalar. Rows after so many are no token's, whatever token_M says of them. None: there are none.
    """
    if num_rows is not None:
        token_M = torch.where(torch.arange(len(token_M), device=token_M.device) < num_rows, token_M, num_tokens)
    # Counted by search, as additions to one cell would wait for each other: spare rows are many, and all of one token.
    sorted_M, row_M = token_M.sort(stable=True)
    return TokenRows(torch.searchsorted(sorted_M, torch.arange(num_tokens + 1, device=token_M.device)), row_M)


def rows_of_choices(place_M: Tensor, top_k: int) -> TokenRows:
    """The same where each token has top_k rows, and place_M (int64) lists them token by token."""
    return TokenRows(torch.arange(0, len(place_M) + 1, top_k, device=place_M.device), place_M)


def gather_rows(x_TD: Tensor, token_M: Tensor, rows: TokenRows | None = None, backend: str = "auto") -> Tensor:
    """Each row's token: x_MD. token_M: int64; rows: those of tokens, made of token_M where they are not given.

    Differentiable in x; the gradient is `sum_rows`.
    """
    if runs_triton(backend, x_TD):
        return _GatherRows.apply(x_TD.contiguous(), token_M.contiguous(), *(rows or (None, None)))
    return x_TD.index_select(0, token_M)


def sum_rows(
    y_MD: Tensor, token_M: Tensor, num_tokens: int, rows: TokenRows | None = None, weight_M: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    """y_TD: the sum of each token's rows, each times its weight if there are any; zero for tokens without rows.

    token_M: int64; rows: those of tokens, made of token_M where they are not given. Products and sums are taken in
    float32 at least, and returned in the dtype of y. Differentiable in y and the weights; with weights y is kept.
    """
    if runs_triton(backend, y_MD, weight_M):
        token_M, weight_M = token_M.contiguous(), None if weight_M is None else weight_M.contiguous()
        start_T1, row_M = rows or rows_of_tokens(token_M, num_tokens)
        return _SumRows.apply(y_MD.contiguous(), token_M, weight_M, start_T1, row_M)
    precise = torch.promote_types(y_MD.dtype, torch.float32)
    weighted_MD = y_MD.to(precise)
    if weight_M is not None:
        weighted_MD = weighted_MD * weight_M.to(precise)[:, None]
    y_TD = torch.zeros(num_tokens, y_MD.shape[1], dtype=precise, device=y_MD.device)
    return y_TD.index_add(0, token_M, weighted_MD).to(y_MD.dtype)


class _GatherRows(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: FunctionCtx, x_TD: Tensor, token_M: Tensor, start_T1: Tensor | None, row_M: Tensor | None
    ) -> Tensor:
        ctx.save_for_backward(*((token_M,) if row_M is None else (start_T1, row_M)))
        ctx.num_tokens = len(x_TD)
        return _gather(x_TD, token_M)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, dy_MD: Tensor) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors
        rows = TokenRows(*saved) if len(saved) == 2 else rows_of_tokens(*saved, ctx.num_tokens)
        return _sum(dy_MD.contiguous(), None, *rows), None, None, None


class _SumRows(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: FunctionCtx, y_MD: Tensor, token_M: Tensor, weight_M: Tensor | None, start_T1: Tensor, row_M: Tensor
    ) -> Tensor:
        ctx.save_for_backward(token_M, *(() if weight_M is None else (weight_M, y_MD)))
        return _sum(y_MD, weight_M, start_T1, row_M)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, dy_TD: Tensor) -> tuple[Tensor | None, ...]:
        token_M, *weighted = ctx.saved_tensors
        if not weighted:
            return _gather(dy_TD.contiguous(), token_M), None, None, None, None
        dy_MD, dweight_M = _gather_weighted(dy_TD.contiguous(), token_M, *weighted)
        return dy_MD, None, dweight_M.to(weighted[0].dtype), None, None


def _fake_gather(x_TD: Tensor, token_M: Tensor) -> Tensor:
    return x_TD.new_empty(len(token_M), x_TD.shape[1])


@operator("gather_rows", _fake_gather)
def _gather(x_TD: Tensor, token_M: Tensor) -> Tensor:
    y_MD = _fake_gather(x_TD, token_M)
    grid = triton.cdiv(len(token_M), COPIED_ROWS), triton.cdiv(x_TD.shape[1], COLUMNS)
    copy_rows[grid](x_TD, token_M, y_MD, len(token_M), x_TD.shape[1], COPIED_ROWS, COLUMNS, num_warps=WARPS)
    return y_MD


def _fake_gather_weighted(
    x_TD: Tensor, token_M: Tensor, weight_M: Tensor, other_MD: Tensor
) -> tuple[Tensor, Tensor]:
    return torch.empty_like(other_MD), weight_M.new_empty(len(weight_M), dtype=torch.float32)


@operator("gather_rows_weighted", _fake_gather_weighted)
def _gather_weighted(x_TD: Tensor, token_M: Tensor, weight_M: Tensor, other_MD: Tensor) -> tuple[Tensor, Tensor]:
    """Each row's token times its weight, and its product with another row: float32 [M]."""
    y_MD, product_M = _fake_gather_weighted(x_TD, token_M, weight_M, other_MD)
    copy_weighted_rows[(triton.cdiv(len(token_M), WEIGHTED_ROWS),)](
        x_TD, token_M, weight_M, other_MD, y_MD, product_M, len(token_M), x_TD.shape[1], WEIGHTED_ROWS, COLUMNS,
        num_warps=WARPS,
    )
    return y_MD, product_M


def _fake_sum(y_MD: Tensor, weight_M: Tensor | None, start_T1: Tensor, row_M: Tensor) -> Tensor:
    return y_MD.new_empty(len(start_T1) - 1, y_MD.shape[1])


@operator("sum_rows", _fake_sum)
def _sum(y_MD: Tensor, weight_M: Tensor | None, start_T1: Tensor, row_M: Tensor) -> Tensor:
    y_TD = _fake_sum(y_MD, weight_M, start_T1, row_M)
    launch_sum(y_MD, weight_M, TokenRows(start_T1, row_M), y_TD)
    return y_TD


def launch_sum(y_MD: Tensor, weight_M: Tensor | None, rows: TokenRows, out_TD: Tensor) -> None:
    """Write `sum_rows` to out_TD, for operators that sum as a part of what they do."""
    num_tokens, width = out_TD.shape
    summed = min(16, triton.next_power_of_2(triton.cdiv(len(rows.row_M), max(1, num_tokens))))
    add_rows[num_tokens, triton.cdiv(width, COLUMNS)](
        y_MD, weight_M, *rows, out_TD, width, max(1, summed), COLUMNS, num_warps=WARPS
    )


@triton.jit(do_not_specialize=["num_rows"])
def copy_rows(x_TD, token_M, y_MD, num_rows, WIDTH: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """A program copies ROWS rows of COLUMNS columns."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    token = tl.load(token_M + row, mask=row < num_rows, other=0).to(tl.int64)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    mask = (row < num_rows)[:, None] & (column < WIDTH)[None, :]
    x = tl.load(x_TD + token[:, None] * WIDTH + column[None, :], mask=mask, other=0.0)
    tl.store(y_MD + row[:, None].to(tl.int64) * WIDTH + column[None, :], x, mask=mask)


@triton.jit(do_not_specialize=["num_rows"])
def copy_weighted_rows(
    x_TD, token_M, weight_M, other_MD, y_MD, product_M, num_rows,
    WIDTH: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):
    """y[m] = weight[m] x[token[m]]; product[m] = <x[token[m]], other[m]>. A program works on ROWS whole rows."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    token = tl.load(token_M + row, mask=row < num_rows, other=0).to(tl.int64)
    weight = widen(tl.load(weight_M + row, mask=row < num_rows, other=0.0))
    product = tl.zeros((ROWS, COLUMNS), tl.float32)
    for start in range(0, WIDTH, COLUMNS):
        column = start + tl.arange(0, COLUMNS)
        mask = (row < num_rows)[:, None] & (column < WIDTH)[None, :]
        offset = row[:, None].to(tl.int64) * WIDTH + column[None, :]
        x = widen(tl.load(x_TD + token[:, None] * WIDTH + column[None, :], mask=mask, other=0.0))
        product += x * widen(tl.load(other_MD + offset, mask=mask, other=0.0))
        tl.store(y_MD + offset, narrow(x * weight[:, None], y_MD.dtype.element_ty), mask=mask)
    tl.store(product_M + row, tl.sum(product, 1), mask=row < num_rows)


@triton.jit
def add_rows(y_MD, weight_M, start_T1, row_M, out_TD, WIDTH: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """A program sums COLUMNS columns of one token's rows, ROWS at a time."""
    token = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    end = tl.load(start_T1 + token + 1)
    total = tl.zeros((COLUMNS,), tl.float32)
    for start in range(tl.load(start_T1 + token), end, ROWS):
        place = start + tl.arange(0, ROWS)
        row = tl.load(row_M + place, mask=place < end, other=0).to(tl.int64)
        mask = (place < end)[:, None] & (column < WIDTH)[None, :]
        y = widen(tl.load(y_MD + row[:, None] * WIDTH + column[None, :], mask=mask, other=0.0))
        if weight_M is not None:
            y *= widen(tl.load(weight_M + row, mask=place < end, other=0.0))[:, None]
        total += tl.sum(y, 0)
    tl.store(out_TD + token * WIDTH + column, narrow(total, out_TD.dtype.element_ty), mask=column < WIDTH)
