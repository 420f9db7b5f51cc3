"""Mamba-1's selective scan in Triton: a program walks along a sequence, tile after tile of tokens, with the state of a
few channels in registers; within a tile the recurrence is an associative scan.

B batch, S sequence, Z runs of tokens whose entering state is kept, T tokens of a tile, I channels, J blocks of them,
N state.
"""

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from kernels.language import INTERPRETING, narrow, tl, triton, widen
from kernels.operator import operator

TOKENS, CHANNELS = (4, 8) if INTERPRETING else (16, 16)
"""Tokens of a tile and channels of a program, at most: of large states fewer."""

LARGEST_TILE = 4 * 8 * 16 if INTERPRETING else 16 * 16 * 16
"""Numbers of tokens, channels and states that the backward holds in registers, several times."""

RUN = 8 if INTERPRETING else 32
"""Tokens of a run: the backward walks through tiles before one once more, from the state kept at the run's start."""


class SelectiveScan(torch.autograd.Function):
    """`kernels.selective_scan`, for float32 and bfloat16; keeps the arguments and a state for each run of tokens."""

    @staticmethod
    def forward(
        ctx: FunctionCtx, x_BSI: Tensor, dt_BSI: Tensor, A_IN: Tensor, B_BSN: Tensor, C_BSN: Tensor, D_I: Tensor,
        document_BS: Tensor | None, state_BIN: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        inputs = [tensor.contiguous() for tensor in (x_BSI, dt_BSI, A_IN, B_BSN, C_BSN, D_I)]
        document_BS = None if document_BS is None else document_BS.contiguous()
        state_BIN = None if state_BIN is None else state_BIN.contiguous()
        y_BSI, last_BIN, kept_BZIN = _forward(*inputs, document_BS, state_BIN)
        ctx.save_for_backward(*inputs, document_BS, kept_BZIN)
        ctx.state_dtype = None if state_BIN is None else state_BIN.dtype
        return y_BSI, last_BIN

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, dy_BSI: Tensor, dlast_BIN: Tensor) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors
        _, _, A_IN, _, _, D_I, *_ = saved
        dx_BSI, ddt_BSI, dA_BIN, dB_BSN, dC_BSN, dD_BI, dstate_BIN = _backward(
            dy_BSI.contiguous(), dlast_BIN.contiguous(), *saved
        )
        dstate_BIN = None if ctx.state_dtype is None else dstate_BIN.to(ctx.state_dtype)
        return (dx_BSI, ddt_BSI, dA_BIN.sum(0).to(A_IN.dtype), dB_BSN, dC_BSN, dD_BI.sum(0).to(D_I.dtype), None,
                dstate_BIN)


def _grid(x_BSI: Tensor, A_IN: Tensor) -> tuple[int, int]:
    return triton.cdiv(x_BSI.shape[2], _sizes(A_IN)["BLOCK_I"]), x_BSI.shape[0]


def _sizes(A_IN: Tensor) -> dict[str, int]:
    """What kernels are compiled for. Half as many channels come before half as many tokens, down to one of each."""
    num_states = max(4, triton.next_power_of_2(A_IN.shape[1]))
    tokens, channels = TOKENS, CHANNELS
    while tokens * channels * num_states > LARGEST_TILE and tokens * channels > 1:
        tokens, channels = (tokens, channels // 2) if channels >= tokens else (tokens // 2, channels)
    return {"N": A_IN.shape[1], "TOKENS": tokens, "TILES": RUN // tokens, "BLOCK_I": channels, "BLOCK_N": num_states,
            "num_warps": 8}


def _fake_forward(
    x_BSI: Tensor, dt_BSI: Tensor, A_IN: Tensor, B_BSN: Tensor, C_BSN: Tensor, D_I: Tensor,
    document_BS: Tensor | None, state_BIN: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    batch_size, num_runs = x_BSI.shape[0], -(-x_BSI.shape[1] // RUN)
    return (
        torch.empty_like(x_BSI), x_BSI.new_empty(batch_size, *A_IN.shape, dtype=torch.float32),
        x_BSI.new_empty(batch_size, num_runs, *A_IN.shape, dtype=torch.float32),
    )


@operator("selective_scan", _fake_forward)
def _forward(
    x_BSI: Tensor, dt_BSI: Tensor, A_IN: Tensor, B_BSN: Tensor, C_BSN: Tensor, D_I: Tensor,
    document_BS: Tensor | None, state_BIN: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """y, the state after the last token, and those that enter each run."""
    y_BSI, last_BIN, kept_BZIN = _fake_forward(x_BSI, dt_BSI, A_IN, B_BSN, C_BSN, D_I, document_BS, state_BIN)
    selective_scan_forward[_grid(x_BSI, A_IN)](
        x_BSI, dt_BSI, A_IN, B_BSN, C_BSN, D_I, document_BS, state_BIN, y_BSI, last_BIN, kept_BZIN,
        kept_BZIN.shape[1], *x_BSI.shape[1:], **_sizes(A_IN),
    )
    return y_BSI, last_BIN, kept_BZIN


def _fake_backward(
    dy_BSI: Tensor, dlast_BIN: Tensor, x_BSI: Tensor, dt_BSI: Tensor, A_IN: Tensor, B_BSN: Tensor, C_BSN: Tensor,
    D_I: Tensor, document_BS: Tensor | None, kept_BZIN: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    dA_BIN, dD_BI = torch.empty_like(dlast_BIN), dlast_BIN.new_empty(dlast_BIN.shape[:2])
    return (torch.empty_like(x_BSI), torch.empty_like(dt_BSI), dA_BIN, torch.empty_like(B_BSN),
            torch.empty_like(C_BSN), dD_BI, torch.empty_like(dlast_BIN))


@operator("selective_scan_backward", _fake_backward)
def _backward(
    dy_BSI: Tensor, dlast_BIN: Tensor, x_BSI: Tensor, dt_BSI: Tensor, A_IN: Tensor, B_BSN: Tensor, C_BSN: Tensor,
    D_I: Tensor, document_BS: Tensor | None, kept_BZIN: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x, dt, A (of each sequence), B, C, D (of each sequence) and of the state before the first token."""
    dx_BSI, ddt_BSI, dA_BIN, _, _, dD_BI, dstate_BIN = _fake_backward(
        dy_BSI, dlast_BIN, x_BSI, dt_BSI, A_IN, B_BSN, C_BSN, D_I, document_BS, kept_BZIN
    )
    num_blocks = _grid(x_BSI, A_IN)[0]
    # Each block of channels has its share of the gradients of what all channels read.
    dB_JBSN, dC_JBSN = (B_BSN.new_empty(num_blocks, *B_BSN.shape, dtype=torch.float32) for _ in range(2))
    selective_scan_backward[_grid(x_BSI, A_IN)](
        dy_BSI, dlast_BIN, x_BSI, dt_BSI, A_IN, B_BSN, C_BSN, D_I, document_BS, kept_BZIN,
        dx_BSI, ddt_BSI, dA_BIN, dB_JBSN, dC_JBSN, dD_BI, dstate_BIN, kept_BZIN.shape[1], *x_BSI.shape[1:],
        **_sizes(A_IN),
    )
    dB_BSN, dC_BSN = dB_JBSN.sum(0).to(B_BSN.dtype), dC_JBSN.sum(0).to(C_BSN.dtype)
    return dx_BSI, ddt_BSI, dA_BIN, dB_BSN, dC_BSN, dD_BI, dstate_BIN


@triton.jit
def selective_scan_forward(
    x_BSI, dt_BSI, A_IN, B_BSN, C_BSN, D_I, document_BS, state_BIN, y_BSI, last_BIN, kept_BZIN,
    num_runs, seq_len, num_channels,
    N: tl.constexpr, TOKENS: tl.constexpr, TILES: tl.constexpr, BLOCK_I: tl.constexpr, BLOCK_N: tl.constexpr,
):
    row = tl.program_id(1).to(tl.int64)
    channel, state = tl.program_id(0) * BLOCK_I + tl.arange(0, BLOCK_I), tl.arange(0, BLOCK_N)
    is_channel, pair = channel < num_channels, channel[:, None] * N + state[None, :]
    is_pair = is_channel[:, None] & (state < N)[None, :]
    rate_IN = tl.load(A_IN + pair, mask=is_pair, other=0.0) * 1.4426950408889634
    D = tl.load(D_I + channel, mask=is_channel, other=0.0)
    h_IN = tl.zeros((BLOCK_I, BLOCK_N), tl.float32)
    if state_BIN is not None:
        h_IN = widen(tl.load(state_BIN + row * num_channels * N + pair, mask=is_pair, other=0.0))
    rows, vectors = row * seq_len * num_channels, row * seq_len * N
    x, dt, B, C, y = x_BSI + rows, dt_BSI + rows, B_BSN + vectors, C_BSN + vectors, y_BSI + rows
    document = None if document_BS is None else document_BS + row * seq_len
    for run in range(0, num_runs):
        tl.store(kept_BZIN + (row * num_runs + run) * num_channels * N + pair, h_IN, mask=is_pair)
        for tile in range(0, TILES):
            token = (run * TILES + tile) * TOKENS + tl.arange(0, TOKENS)
            is_token = token < seq_len
            decay, added = decays_and_inputs(
                x, dt, B, document, token, is_token, channel, state, rate_IN, num_channels, N)
            h_TIN = scan_states(decay, added, h_IN)
            h_IN = take_token(h_TIN, TOKENS - 1, TOKENS)
            C_TN = load_tile(C, token, is_token, state, N)
            x_TI = load_tile(x, token, is_token, channel, num_channels)
            y_TI = tl.sum(h_TIN * C_TN[:, None, :], 2) + D[None, :] * x_TI
            store_tile(y, token, is_token, channel, num_channels, y_TI)
    tl.store(last_BIN + row * num_channels * N + pair, h_IN, mask=is_pair)


@triton.jit
def selective_scan_backward(
    dy_BSI, dlast_BIN, x_BSI, dt_BSI, A_IN, B_BSN, C_BSN, D_I, document_BS, kept_BZIN,
    dx_BSI, ddt_BSI, dA_BIN, dB_JBSN, dC_JBSN, dD_BI, dstate_BIN, num_runs, seq_len, num_channels,
    N: tl.constexpr, TOKENS: tl.constexpr, TILES: tl.constexpr, BLOCK_I: tl.constexpr, BLOCK_N: tl.constexpr,
):
    """h_t has gradient g_t = C_t dy_t + decay_{t+1} g_{t+1}; dt_t A has gradient decay_t g_t h_{t-1}.

    What a neighbouring token has, g_t needs the decay of the next, h_{t-1} those and the inputs of the ones before, is
    computed again from shifted loads: registers cannot be shifted. None is a difference of large terms.
    """
    row = tl.program_id(1).to(tl.int64)
    channel, state = tl.program_id(0) * BLOCK_I + tl.arange(0, BLOCK_I), tl.arange(0, BLOCK_N)
    is_channel, pair = channel < num_channels, channel[:, None] * N + state[None, :]
    is_pair = is_channel[:, None] & (state < N)[None, :]
    A = tl.load(A_IN + pair, mask=is_pair, other=0.0)
    rate_IN = A * 1.4426950408889634
    D = tl.load(D_I + channel, mask=is_channel, other=0.0)
    later_IN = tl.load(dlast_BIN + row * num_channels * N + pair, mask=is_pair, other=0.0)
    dA_IN, dD = tl.zeros((BLOCK_I, BLOCK_N), tl.float32), tl.zeros((BLOCK_I,), tl.float32)
    rows, vectors = row * seq_len * num_channels, row * seq_len * N
    x, dt, B, C, dy = x_BSI + rows, dt_BSI + rows, B_BSN + vectors, C_BSN + vectors, dy_BSI + rows
    document = None if document_BS is None else document_BS + row * seq_len
    share = (tl.program_id(0).to(tl.int64) * tl.num_programs(1) + row) * seq_len * N
    lane = tl.arange(0, TOKENS)
    for step in range(0, num_runs * TILES):
        place = num_runs * TILES - 1 - step
        run, tile = place // TILES, place % TILES
        h_IN = tl.load(kept_BZIN + (row * num_runs + run) * num_channels * N + pair, mask=is_pair, other=0.0)
        for before in range(0, tile):
            token = (run * TILES + before) * TOKENS + lane
            decay, added = decays_and_inputs(
                x, dt, B, document, token, token < seq_len, channel, state, rate_IN, num_channels, N)
            h_IN = take_token(scan_states(decay, added, h_IN), TOKENS - 1, TOKENS)

        token = place * TOKENS + lane
        is_token = token < seq_len
        decay, added = decays_and_inputs(
            x, dt, B, document, token - 1, is_token & (lane > 0), channel, state, rate_IN, num_channels, N)
        before_TIN = scan_states(decay, added, h_IN)
        C_TN = load_tile(C, token, is_token, state, N)
        dy_TI = load_tile(dy, token, is_token, channel, num_channels)
        after = (token + 1 < seq_len) & (lane < TOKENS - 1)
        decay = decays(dt, document, token + 1, after, channel, rate_IN, num_channels)
        read_TIN = C_TN[:, None, :] * dy_TI[:, :, None]
        product, g_TIN = tl.associative_scan((decay, read_TIN), 0, combine_steps, reverse=True)
        g_TIN += product * later_IN[None, :, :]

        decay = decays(dt, document, token, is_token, channel, rate_IN, num_channels)
        x_TI = load_tile(x, token, is_token, channel, num_channels)
        dt_TI = load_tile(dt, token, is_token, channel, num_channels)
        B_TN = load_tile(B, token, is_token, state, N)
        h_TIN = decay * before_TIN + (dt_TI * x_TI)[:, :, None] * B_TN[:, None, :]
        store_tile(dC_JBSN + share, token, is_token, state, N, tl.sum(h_TIN * dy_TI[:, :, None], 1))
        store_tile(dB_JBSN + share, token, is_token, state, N, tl.sum(g_TIN * (dt_TI * x_TI)[:, :, None], 1))
        dvalue_TI = tl.sum(g_TIN * B_TN[:, None, :], 2)
        g_TIN *= decay
        later_IN = take_token(g_TIN, 0, TOKENS)
        dlog_TIN = g_TIN * before_TIN
        dA_IN += tl.sum(dlog_TIN * dt_TI[:, :, None], 0)
        dD += tl.sum(dy_TI * x_TI, 0)
        ddt_TI = dvalue_TI * x_TI + tl.sum(dlog_TIN * A[None, :, :], 2)
        store_tile(ddt_BSI + rows, token, is_token, channel, num_channels, ddt_TI)
        dx_TI = dvalue_TI * dt_TI + D[None, :] * dy_TI
        store_tile(dx_BSI + rows, token, is_token, channel, num_channels, dx_TI)
    tl.store(dstate_BIN + row * num_channels * N + pair, later_IN, mask=is_pair)
    tl.store(dA_BIN + row * num_channels * N + pair, dA_IN, mask=is_pair)
    tl.store(dD_BI + row * num_channels + channel, dD, mask=is_channel)


@triton.jit
def decays(dt, document, token, is_token, channel, rate_IN, num_channels):
    """exp(dt A) of each token, zero where a document starts, one where there is no token: [T, I, N]."""
    dt_TI = load_tile(dt, token, is_token, channel, num_channels)
    decay = tl.exp2(dt_TI[:, :, None] * rate_IN[None, :, :])
    if document is not None:
        here = tl.load(document + token, mask=is_token, other=0)
        previous = tl.load(document + token - 1, mask=is_token & (token > 0), other=0)
        starts = is_token & (token > 0) & (here != previous)
        decay = tl.where(starts[:, None, None], 0.0, decay)
    return decay


@triton.jit
def decays_and_inputs(x, dt, B, document, token, is_token, channel, state, rate_IN, num_channels, N):
    """The decays, and what each token adds to the state: dt x B^T."""
    value_TI = load_tile(x, token, is_token, channel, num_channels)
    value_TI *= load_tile(dt, token, is_token, channel, num_channels)
    B_TN = load_tile(B, token, is_token, state, N)
    added = value_TI[:, :, None] * B_TN[:, None, :]
    return decays(dt, document, token, is_token, channel, rate_IN, num_channels), added


@triton.jit
def scan_states(decay, added, h_IN):
    """h_t = decay_t h_{t-1} + added_t, from the state before the first token: [T, I, N]."""
    product, h_TIN = tl.associative_scan((decay, added), 0, combine_steps)
    return h_TIN + product * h_IN[None, :, :]


@triton.jit
def combine_steps(decay, value, next_decay, next_value):
    """Two steps of a linear recurrence as one."""
    return decay * next_decay, value * next_decay + next_value


@triton.jit
def take_token(x_TIN, place: tl.constexpr, TOKENS: tl.constexpr):
    """The entries of one token: [I, N]."""
    lane = tl.arange(0, TOKENS)
    return tl.sum(tl.where((lane == place)[:, None, None], x_TIN, 0.0), 0)


@triton.jit
def load_tile(x, token, is_token, column, width):
    """[T, columns] in float32, zero where there is nothing."""
    mask = is_token[:, None] & (column < width)[None, :]
    return widen(tl.load(x + token[:, None].to(tl.int64) * width + column[None, :], mask=mask, other=0.0))


@triton.jit
def store_tile(x, token, is_token, column, width, value):
    mask = is_token[:, None] & (column < width)[None, :]
    pointer = x + token[:, None].to(tl.int64) * width + column[None, :]
    tl.store(pointer, narrow(value, x.dtype.element_ty), mask=mask)
