"""Cross entropy of rows of logits, whose gradient overwrites them; of whole rows, or of one rank's part of each.

R rows, V vocabulary, L logits of it here.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from kernels.backend import runs_triton
from kernels.language import narrow, tl, triton, widen
from kernels.operator import operator

IGNORED = -100
LARGEST_BLOCK = 4096
"""Logits that a program holds at once: 16 for each of 256 threads, in so few registers that five programs share a
multiprocessor, and one reads while another waits for its sum."""


class RowLosses(NamedTuple):
    """Each row's loss, float32 at least, 0 where it is left out; and the gradient of the losses' sum by the logits.

    The gradient is factor_R1 * gradient_RV, where a factor is given: whoever multiplies by a matrix next can put it on
    the narrower side.
    """

    loss_R: Tensor
    gradient_RV: Tensor
    factor_R1: Tensor | None = None


def cross_entropy_rows(
    logits_RV: Tensor, target_R: Tensor, logit_scale: float = 1.0, z_loss_weight: float = 0.0,
    needs_gradient: bool = True, backend: str = "auto",
) -> RowLosses:
    """-log softmax(scale logits)[target] + z_loss_weight logsumexp(scale logits)^2, and its gradient, in one go.

    logits_RV: float dtype, [R, V] with rows of adjacent numbers; overwritten. target_R: int64, IGNORED where a row is
    left out. The second term is PaLM's z-loss (https://arxiv.org/abs/2204.02311, 5). Arithmetic is float32 at least.
    Triton's body reads a row twice, writes the gradient over it in its own dtype, and gives a loss of NaN to a target
    that is no row of the vocabulary. Without needs_gradient the gradient returned is meaningless.
    """
    if runs_triton(backend, logits_RV, target_R):
        target_R = target_R.contiguous()
        return RowLosses(_whole(logits_RV, target_R, logit_scale, z_loss_weight, needs_gradient), logits_RV)
    wide_RV = _scaled(logits_RV, logit_scale)
    index_R1 = target_R.clamp(min=0)[:, None]
    lse_R1 = wide_RV.logsumexp(1, keepdim=True) if z_loss_weight else None
    torch.log_softmax(wide_RV, 1, out=wide_RV)
    loss_R1 = -wide_RV.gather(1, index_R1)
    if z_loss_weight:
        loss_R1 += z_loss_weight * lse_R1.square()
    loss_R = loss_R1[:, 0].masked_fill(target_R == IGNORED, 0.0)
    if needs_gradient:
        wide_RV.exp_()
        if z_loss_weight:
            wide_RV *= 1 + 2 * z_loss_weight * lse_R1
        wide_RV.scatter_add_(1, index_R1, torch.full_like(loss_R1, -1.0))
    return RowLosses(loss_R, wide_RV, _factor(target_R, logit_scale, wide_RV.dtype))


def shard_statistics(
    logits_RL: Tensor, target_R: Tensor, start: int, logit_scale: float = 1.0, backend: str = "auto"
) -> tuple[Tensor, Tensor]:
    """Of rows of which only columns start to start + L of the vocabulary are here: what the others must know.

    Returns [3, R], float32 at least, and [R, L], which `shard_gradient` takes: the largest scaled logit, the sum of
    exp(scaled logit - largest), and the target's scaled logit, 0 where it is not here. The logits may be overwritten.
    """
    if runs_triton(backend, logits_RL, target_R):
        return _statistics(logits_RL, target_R.contiguous(), start, logit_scale), logits_RL
    wide_RL = _scaled(logits_RL, logit_scale)
    index_R1, here_R1 = _locate(target_R, start, wide_RL)
    target_logit_R1 = wide_RL.gather(1, index_R1) * here_R1
    largest_R1 = wide_RL.amax(1, keepdim=True)
    wide_RL.sub_(largest_R1).exp_()
    return torch.stack([largest_R1[:, 0], wide_RL.sum(1), target_logit_R1[:, 0]]), wide_RL


def shard_gradient(
    from_statistics_RL: Tensor, target_R: Tensor, start: int, statistics_3R: Tensor, lse_R: Tensor,
    logit_scale: float = 1.0, z_loss_weight: float = 0.0, backend: str = "auto",
) -> tuple[Tensor, Tensor | None]:
    """The gradient and its factor, as in `RowLosses`, over what `shard_statistics` returned.

    statistics_3R: this rank's. lse_R: logsumexp of a whole row's scaled logits, float32 at least.
    """
    if runs_triton(backend, from_statistics_RL, target_R, lse_R):
        _shard(from_statistics_RL, target_R.contiguous(), lse_R.contiguous(), start, logit_scale, z_loss_weight)
        return from_statistics_RL, None
    index_R1, here_R1 = _locate(target_R, start, from_statistics_RL)
    share_R = (statistics_3R[0] - lse_R).exp_() * (1 + 2 * z_loss_weight * lse_R)
    gradient_RL = from_statistics_RL.mul_(share_R[:, None]).scatter_add_(1, index_R1, -here_R1)
    return gradient_RL, _factor(target_R, logit_scale, lse_R.dtype)


def _scaled(logits_RV: Tensor, scale: float) -> Tensor:
    """The logits themselves, overwritten, where they are wide enough."""
    wide_RV = logits_RV.to(torch.promote_types(logits_RV.dtype, torch.float32))
    return wide_RV if scale == 1.0 else wide_RV.mul_(scale)


def _factor(target_R: Tensor, scale: float, dtype: torch.dtype) -> Tensor:
    return torch.full_like(target_R, scale, dtype=dtype).masked_fill_(target_R == IGNORED, 0.0)[:, None]


def _locate(target_R: Tensor, start: int, logits_RL: Tensor) -> tuple[Tensor, Tensor]:
    """[R, 1]: the column of each target, 0 where it is not here, and 1.0 where it is, 0.0 elsewhere."""
    index_R1 = (target_R - start)[:, None]
    here_R1 = (index_R1 >= 0) & (index_R1 < logits_RL.shape[1])
    return index_R1.masked_fill(~here_R1, 0), here_R1.to(logits_RL.dtype)


def _sizes(logits_RV: Tensor) -> dict[str, int]:
    block = min(LARGEST_BLOCK, triton.next_power_of_2(logits_RV.shape[1]))
    return {"BLOCK": block, "IGNORED": IGNORED, "num_warps": min(8, max(1, block // 512))}


def _losses_like(logits_RV: Tensor, *others: object) -> Tensor:
    return logits_RV.new_empty(logits_RV.shape[0], dtype=torch.float32)


@operator("cross_entropy_rows", _losses_like, mutates=("logits_RV",))
def _whole(logits_RV: Tensor, target_R: Tensor, scale: float, z_loss_weight: float, needs_gradient: bool) -> Tensor:
    loss_R = _losses_like(logits_RV)
    cross_entropy_row[(logits_RV.shape[0],)](
        logits_RV, target_R, loss_R, logits_RV.shape[1], logits_RV.stride(0), scale, z_loss_weight,
        GRADIENT=needs_gradient, **_sizes(logits_RV),
    )
    return loss_R


def _fake_statistics(logits_RL: Tensor, target_R: Tensor, start: int, scale: float) -> Tensor:
    return logits_RL.new_empty(3, logits_RL.shape[0], dtype=torch.float32)


@operator("cross_entropy_shard_statistics", _fake_statistics)
def _statistics(logits_RL: Tensor, target_R: Tensor, start: int, scale: float) -> Tensor:
    statistics_3R = _fake_statistics(logits_RL, target_R, start, scale)
    shard_row_statistics[(logits_RL.shape[0],)](
        logits_RL, target_R, statistics_3R, start, *logits_RL.shape, logits_RL.stride(0), scale, **_sizes(logits_RL)
    )
    return statistics_3R


@operator("cross_entropy_shard_gradient", lambda *arguments: None, mutates=("logits_RL",))
def _shard(
    logits_RL: Tensor, target_R: Tensor, lse_R: Tensor, start: int, scale: float, z_loss_weight: float
) -> None:
    shard_row_gradient[(logits_RL.shape[0],)](
        logits_RL, target_R, lse_R, start, logits_RL.shape[1], logits_RL.stride(0), scale, z_loss_weight,
        **_sizes(logits_RL),
    )


@triton.jit
def cross_entropy_row(
    logits_RV, target_R, loss_R, num_logits, stride, scale, z_loss_weight,
    GRADIENT: tl.constexpr, BLOCK: tl.constexpr, IGNORED: tl.constexpr,
):
    """A program's row: its loss, then the gradient over the logits."""
    row, logits = tl.program_id(0), logits_RV + tl.program_id(0).to(tl.int64) * stride
    target = tl.load(target_R + row)
    if target == IGNORED:
        tl.store(loss_R + row, 0.0)
        if GRADIENT:
            write_zeros(logits, num_logits, BLOCK)
    else:
        largest, total = largest_and_sum(logits, num_logits, scale, BLOCK)
        lse = largest + tl.log(total)
        inside = tl.where(target >= 0, target < num_logits, False)
        target_logit = widen(tl.load(logits + tl.where(inside, target, 0))) * scale
        loss = tl.log(total) - (target_logit - largest) + z_loss_weight * lse * lse
        tl.store(loss_R + row, tl.where(inside, loss, float("nan")))
        if GRADIENT:
            # Every thread reads the target's logit, and one is about to overwrite it.
            tl.debug_barrier()
            write_gradient(logits, target, num_logits, lse, scale, z_loss_weight, BLOCK)


@triton.jit(do_not_specialize=["start", "num_rows"])
def shard_row_statistics(
    logits_RL, target_R, statistics_3R, start, num_rows, num_logits, stride, scale,
    BLOCK: tl.constexpr, IGNORED: tl.constexpr,
):
    row, logits = tl.program_id(0), logits_RL + tl.program_id(0).to(tl.int64) * stride
    target = tl.load(target_R + row) - start
    largest, total = largest_and_sum(logits, num_logits, scale, BLOCK)
    inside = tl.where(target >= 0, target < num_logits, False)
    target_logit = widen(tl.load(logits + tl.where(inside, target, 0))) * scale
    tl.store(statistics_3R + row, largest)
    tl.store(statistics_3R + num_rows + row, total)
    tl.store(statistics_3R + 2 * num_rows + row, tl.where(inside, target_logit, 0.0))


@triton.jit(do_not_specialize=["start"])
def shard_row_gradient(
    logits_RL, target_R, lse_R, start, num_logits, stride, scale, z_loss_weight,
    BLOCK: tl.constexpr, IGNORED: tl.constexpr,
):
    row, logits = tl.program_id(0), logits_RL + tl.program_id(0).to(tl.int64) * stride
    target = tl.load(target_R + row)
    if target == IGNORED:
        write_zeros(logits, num_logits, BLOCK)
    else:
        write_gradient(logits, target - start, num_logits, tl.load(lse_R + row), scale, z_loss_weight, BLOCK)


@triton.jit
def largest_and_sum(logits, num_logits, scale, BLOCK: tl.constexpr):
    """Of a row: the largest scaled logit, and the sum of exp(scaled logit - largest), in one pass.

    Whole blocks need no mask, so that their loads are 16 bytes wide whatever the vocabulary.
    """
    lane = tl.arange(0, BLOCK)
    whole = num_logits // BLOCK * BLOCK
    tail = tl.load(logits + whole + lane, mask=lane < num_logits - whole, other=0.0)
    tail = tl.where(lane < num_logits - whole, widen(tail) * scale, -float("inf"))
    # A row that ends with a whole block has no tail; its first logit then stands in as the largest so far.
    largest = tl.maximum(tl.max(tail, 0), widen(tl.load(logits)) * scale)
    total = tl.sum(tl.exp(tail - largest), 0)
    for first in range(0, whole, BLOCK):
        block = widen(tl.load(logits + first + lane)) * scale
        before, largest = largest, tl.maximum(largest, tl.max(block, 0))
        total = total * tl.exp(before - largest) + tl.sum(tl.exp(block - largest), 0)
    return largest, total


@triton.jit
def write_gradient(logits, target, num_logits, lse, scale, z_loss_weight, BLOCK: tl.constexpr):
    """scale (softmax (1 + 2 z_loss_weight lse) - one-hot), over the logits."""
    lane = tl.arange(0, BLOCK)
    dtype: tl.constexpr = logits.dtype.element_ty
    whole = num_logits // BLOCK * BLOCK
    factor = scale * (1 + 2 * z_loss_weight * lse)
    for first in range(0, whole, BLOCK):
        at = logits + first + lane
        gradient = factor * tl.exp(widen(tl.load(at)) * scale - lse) - tl.where(first + lane == target, scale, 0.0)
        tl.store(at, narrow(gradient, dtype))
    at, mask = logits + whole + lane, lane < num_logits - whole
    softmax = tl.exp(widen(tl.load(at, mask=mask, other=0.0)) * scale - lse)
    gradient = factor * softmax - tl.where(whole + lane == target, scale, 0.0)
    tl.store(at, narrow(gradient, dtype), mask=mask)


@triton.jit
def write_zeros(logits, num_logits, BLOCK: tl.constexpr):
    lane = tl.arange(0, BLOCK)
    zeros = tl.zeros((BLOCK,), logits.dtype.element_ty)
    whole = num_logits // BLOCK * BLOCK
    for first in range(0, whole, BLOCK):
        tl.store(logits + first + lane, zeros)
    tl.store(logits + whole + lane, zeros, mask=lane < num_logits - whole)
