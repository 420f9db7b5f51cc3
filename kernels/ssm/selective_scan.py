"""Mamba-1's selective scan: in Triton, or in PyTorch chunk after chunk, each chunk by a blocked recurrence, recomputed
in the backward.

Shapes: B batch, S sequence, Q tokens of a chunk, I channels, N state.
"""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.backend import runs_triton
from kernels.ssm.documents import document_starts
from kernels.ssm.selective_scan_tiles import SelectiveScan

BLOCK_SIZE = 8
"""Tokens of a block: the recurrence of a chunk takes about BLOCK_SIZE + Q / BLOCK_SIZE steps, not Q."""


def selective_scan(
    x_BSI: Tensor,
    dt_BSI: Tensor,
    A_IN: Tensor,
    B_BSN: Tensor,
    C_BSN: Tensor,
    D_I: Tensor,
    chunk_size: int = 64,
    document_BS: Tensor | None = None,
    state_BIN: Tensor | None = None,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Selective state-space scan (https://arxiv.org/abs/2312.00752, equation 2 and algorithm 2).

    h_t = exp(dt_t A) h_{t-1} + dt_t x_t B_t^T,  y_t = h_t C_t + D x_t, with A a rate per channel and state.

    Args:
        x_BSI, B_BSN, C_BSN: any float dtype; arithmetic is float32 at least.
        dt_BSI: time steps, >= 0. A_IN: decay rates, < 0. D_I: the skip's weights.
        chunk_size: tokens whose states exist at one time in PyTorch's body; changes speed and memory, not the result.
        document_BS: int64, non-decreasing along S; the state is zero at the start of a document.
        state_BIN: the state before the first token, of its document; None: zeros.

    Returns:
        y_BSI of x's dtype, and the state after the last token, [B, I, N] in the arithmetic's dtype.

    Memory kept for the backward: the arguments and one state per chunk; Triton's body has chunks of its own size.
    """
    if runs_triton(backend, x_BSI, dt_BSI, A_IN, B_BSN, C_BSN, D_I, state_BIN):
        dt_BSI, A_IN, D_I = (tensor.to(torch.float32) for tensor in (dt_BSI, A_IN, D_I))
        return SelectiveScan.apply(x_BSI, dt_BSI, A_IN, B_BSN, C_BSN, D_I, document_BS, state_BIN)
    (batch_size, seq_len, _), wide = x_BSI.shape, torch.promote_types(x_BSI.dtype, torch.float32)
    starts_BS1 = None if document_BS is None else _pad(document_starts(document_BS)[..., None])
    if state_BIN is None:
        state_BIN = x_BSI.new_zeros(batch_size, *A_IN.shape, dtype=wide)
    # Tokens with dt 0 leave the state as it is.
    inputs = (_pad(tensor) for tensor in (x_BSI, dt_BSI.to(wide), B_BSN, C_BSN))
    y_BSI, state_BNI = _SelectiveScan.apply(
        *inputs, A_IN.to(wide).mT.contiguous(), state_BIN.to(wide).mT, starts_BS1,
        chunk_size + -chunk_size % BLOCK_SIZE,
    )
    return (y_BSI[:, :seq_len] + x_BSI * D_I.to(wide)).to(x_BSI.dtype), state_BNI.mT


def selective_step(
    x_BI: Tensor, dt_BI: Tensor, A_IN: Tensor, B_BN: Tensor, C_BN: Tensor, D_I: Tensor, state_BIN: Tensor
) -> tuple[Tensor, Tensor]:
    """One token of `selective_scan`: y_BI of x's dtype and the new state, of the given state's dtype."""
    wide = state_BIN.dtype
    wide_x_BI, dt_BI, B_BN, C_BN = (tensor.to(wide) for tensor in (x_BI, dt_BI, B_BN, C_BN))
    decay_BIN = (dt_BI[..., None] * A_IN.to(wide)).exp()
    state_BIN = decay_BIN * state_BIN + (dt_BI * wide_x_BI)[..., None] * B_BN[:, None]
    y_BI = (state_BIN @ C_BN[..., None]).squeeze(-1) + wide_x_BI * D_I.to(wide)
    return y_BI.to(x_BI.dtype), state_BIN


class _SelectiveScan(torch.autograd.Function):
    """The scan without the skip; S and the chunk size are multiples of BLOCK_SIZE, states are [B, N, I]."""

    @staticmethod
    def forward(ctx, x_BSI, dt_BSI, B_BSN, C_BSN, A_NI, state_BNI, starts_BS1, chunk_size):
        y_BSI, entering = torch.empty_like(dt_BSI), []
        for chunk in _chunk_slices(x_BSI.shape[1], chunk_size):
            entering.append(state_BNI)
            dt_BQI, C_BQN = dt_BSI[:, chunk], C_BSN[:, chunk].to(A_NI.dtype)
            decay_BQNI = _decays(dt_BQI, A_NI, starts_BS1, chunk)
            h_BQNI = _states_(decay_BQNI, dt_BQI * x_BSI[:, chunk], B_BSN[:, chunk], state_BNI)
            y_BSI[:, chunk] = (C_BQN[:, :, None] @ h_BQNI).squeeze(2)
            # A copy, so that the chunk's other states can be freed.
            state_BNI = h_BQNI[:, -1].clone()
        ctx.save_for_backward(x_BSI, dt_BSI, B_BSN, C_BSN, A_NI, starts_BS1, *entering)
        ctx.chunk_size = chunk_size
        return y_BSI, state_BNI

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, dy_BSI, dstate_BNI):
        """h_t has gradient g_t = C_t dy_t + exp(dt_{t+1} A) g_{t+1}; dt_t A has gradient g_t exp(dt_t A) h_{t-1}."""
        x_BSI, dt_BSI, B_BSN, C_BSN, A_NI, starts_BS1, *entering = ctx.saved_tensors
        dx_BSI, ddt_BSI = torch.empty_like(x_BSI), torch.empty_like(dt_BSI)
        dB_BSN, dC_BSN, dA_NI = torch.empty_like(B_BSN), torch.empty_like(C_BSN), torch.zeros_like(A_NI)
        chunks = _chunk_slices(x_BSI.shape[1], ctx.chunk_size)
        for chunk, state_BNI in zip(reversed(chunks), reversed(entering), strict=True):
            x_BQI, B_BQN, C_BQN = (tensor[:, chunk].to(A_NI.dtype) for tensor in (x_BSI, B_BSN, C_BSN))
            dt_BQI, dy_BQI = dt_BSI[:, chunk], dy_BSI[:, chunk]
            decay_BQNI = _decays(dt_BQI, A_NI, starts_BS1, chunk)
            h_BQNI = _states_(decay_BQNI.clone(), dt_BQI * x_BQI, B_BQN, state_BNI)
            dC_BSN[:, chunk] = (h_BQNI @ dy_BQI[..., None]).squeeze(-1)
            g_BQNI = _state_gradients(decay_BQNI, C_BQN, dy_BQI, dstate_BNI)
            dB_BSN[:, chunk] = (g_BQNI @ (dt_BQI * x_BQI)[..., None]).squeeze(-1)
            dvalue_BQI = (B_BQN[:, :, None] @ g_BQNI).squeeze(2)
            dx_BSI[:, chunk] = dvalue_BQI * dt_BQI

            decayed_g_BQNI = g_BQNI.mul_(decay_BQNI)
            dstate_BNI = decayed_g_BQNI[:, 0].clone()
            decayed_g_BQNI[:, 0] *= state_BNI
            decayed_g_BQNI[:, 1:] *= h_BQNI[:, :-1]
            ddt_BSI[:, chunk] = dvalue_BQI * x_BQI + (decayed_g_BQNI * A_NI).sum(2)
            dA_NI += decayed_g_BQNI.mul_(dt_BQI[:, :, None]).sum((0, 1))
        return dx_BSI, ddt_BSI, dB_BSN, dC_BSN, dA_NI, dstate_BNI, None, None


def _pad(x_BSI: Tensor) -> Tensor:
    """Zeros after the end, up to a multiple of BLOCK_SIZE tokens."""
    return F.pad(x_BSI, (0, 0, 0, -x_BSI.shape[1] % BLOCK_SIZE))


def _chunk_slices(seq_len: int, chunk_size: int) -> list[slice]:
    return [slice(start, min(start + chunk_size, seq_len)) for start in range(0, seq_len, chunk_size)]


def _decays(dt_BQI: Tensor, A_NI: Tensor, starts_BS1: Tensor | None, chunk: slice) -> Tensor:
    """What is left of the state before each token: exp(dt A), and zero where a document starts; [B, Q, N, I]."""
    decay_BQNI = (dt_BQI[:, :, None] * A_NI).exp_()
    if starts_BS1 is not None:
        decay_BQNI.masked_fill_(starts_BS1[:, chunk, None], 0.0)
    return decay_BQNI


def _states_(decay_BQNI: Tensor, value_BQI: Tensor, B_BQN: Tensor, state_BNI: Tensor) -> Tensor:
    """The states of a chunk that is entered with state_BNI, [B, Q, N, I]; overwrites decay."""
    h_BQNI = value_BQI[:, :, None] * B_BQN[..., None]
    h_BQNI[:, 0].addcmul_(decay_BQNI[:, 0], state_BNI)
    _recur_(decay_BQNI, h_BQNI)
    return h_BQNI


def _state_gradients(decay_BQNI: Tensor, C_BQN: Tensor, dy_BQI: Tensor, dstate_BNI: Tensor) -> Tensor:
    """The gradients of a chunk's states, [B, Q, N, I]; dstate: what the chunks after it give its last state."""
    g_BQNI = C_BQN[..., None] * dy_BQI[:, :, None]
    g_BQNI[:, -1] += dstate_BNI
    # What the roll brings to the end meets no gradient: the recurrence starts there.
    _recur_(decay_BQNI.roll(-1, dims=1), g_BQNI, reverse=True)
    return g_BQNI


def _recur_(decay_BQNI: Tensor, value_BQNI: Tensor, reverse: bool = False) -> None:
    """value_t += decay_t * value_{t-1} in place, t rising (or with t+1 for t-1, falling); overwrites decay.

    All blocks advance together from zero while decay becomes its product since the block's first token; then each
    block receives what the one before it ended with. Only products of decays <= 1 occur: nothing overflows.
    """
    decay_BZRNI, value_BZRNI = (tensor.unflatten(1, (-1, BLOCK_SIZE)) for tensor in (decay_BQNI, value_BQNI))
    order = -1 if reverse else 1
    positions, blocks = range(BLOCK_SIZE)[::order], range(value_BZRNI.shape[1])[::order]
    for before, position in pairwise(positions):
        value_BZRNI[:, :, position].addcmul_(decay_BZRNI[:, :, position], value_BZRNI[:, :, before])
        decay_BZRNI[:, :, position].mul_(decay_BZRNI[:, :, before])
    for before, block in pairwise(blocks):
        value_BZRNI[:, block].addcmul_(decay_BZRNI[:, block], value_BZRNI[:, before, positions[-1], None])
