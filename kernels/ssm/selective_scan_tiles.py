"""Mamba-1's selective scan in Triton: a program, of one warp, goes from token to token with a tile of the state, some
channels by all states, in registers.

What a few tokens need is loaded before the first of them is computed. A warp waits for no other, and its threads sum
over states and channels by exchanging registers.

B batch, S sequence, Z runs of tokens whose entering state is kept, U tiles of tokens of a run, I channels, J shares of
them, N state.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from kernels.language import INTERPRETING, tl, triton
from kernels.operator import operator
from kernels.ssm.selective_scan_memory import (
    biases_at_starts,
    load_channels,
    load_states,
    load_tokens,
    store_states,
    store_tokens,
)
from kernels.ssm.selective_scan_sums import add_shares, fold


class Tile(NamedTuple):
    """What a program holds of the state, so many channels and numbers at most, and how many tokens it loads at a time.

    registers: at most so many a thread, by spilling if need be; None: as many as it takes. Of fifteen settings that
    were timed on an H200, one changed at a time, these were the fastest: 32 channels forward take two thirds of the
    time of 16, though what is loaded of them then goes through shared memory.
    """

    channels: int
    numbers: int
    tokens: int
    num_warps: int = 1
    registers: int | None = None


FORWARD = Tile(4, 16, 4) if INTERPRETING else Tile(32, 512, 8)
BACKWARD = Tile(8, 32, 2) if INTERPRETING else Tile(16, 256, 2)

SHARE = 8 if INTERPRETING else 16
"""Channels of a program of the backward, tile after tile: it sums what they give the gradients of B and C."""

RUN = 8 if INTERPRETING else 32
"""Tokens of a run, a multiple of a tile's: the state before it is kept; the backward computes the others twice."""


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


def _sizes(x_BSI: Tensor, A_IN: Tensor, tile: Tile) -> dict[str, int]:
    """What kernels are compiled for: of larger states a program holds fewer channels; only a run that is not whole has
    code that asks which tokens exist."""
    (_, seq_len, num_channels), num_states = x_BSI.shape, max(4, triton.next_power_of_2(A_IN.shape[1]))
    sizes = {"CHANNELS": num_channels, "N": A_IN.shape[1], "RUN": RUN, "HAS_TAIL": seq_len % RUN > 0,
             "TOKENS": tile.tokens, "BLOCK_I": max(1, min(tile.channels, tile.numbers // num_states)),
             "BLOCK_N": num_states, "num_warps": tile.num_warps}
    return sizes if tile.registers is None or seq_len % RUN else sizes | {"maxnreg": tile.registers}


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
    sizes = _sizes(x_BSI, A_IN, FORWARD)
    # Few numbers beside x: a thread loads four of float32 at once, and need not take them apart.
    selective_scan_forward[triton.cdiv(sizes["CHANNELS"], sizes["BLOCK_I"]), x_BSI.shape[0]](
        x_BSI, dt_BSI, A_IN, B_BSN.float(), C_BSN.float(), D_I, document_BS, state_BIN, y_BSI, last_BIN, kept_BZIN,
        x_BSI.shape[1], **sizes,
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
    sizes = _sizes(x_BSI, A_IN, BACKWARD)
    blocks = max(1, SHARE // sizes["BLOCK_I"])
    num_shares = triton.cdiv(sizes["CHANNELS"], sizes["BLOCK_I"] * blocks)
    # Each share of the channels has its own of the gradients of B and of C, which all channels read.
    shares_2JBSN = B_BSN.new_empty(2, num_shares, *B_BSN.shape, dtype=torch.float32)
    starts_BUIN = A_IN.new_empty(x_BSI.shape[0], RUN // BACKWARD.tokens, *A_IN.shape)
    selective_scan_backward[num_shares, x_BSI.shape[0]](
        dy_BSI, dlast_BIN, x_BSI, dt_BSI, A_IN, B_BSN.float(), C_BSN.float(), D_I, document_BS, kept_BZIN, starts_BUIN,
        dx_BSI, ddt_BSI, dA_BIN, shares_2JBSN, dD_BI, dstate_BIN, x_BSI.shape[1], BLOCKS=blocks, **sizes,
    )
    dB_BSN, dC_BSN = shares_2JBSN[0].sum(0).to(B_BSN.dtype), shares_2JBSN[1].sum(0).to(C_BSN.dtype)
    return dx_BSI, ddt_BSI, dA_BIN, dB_BSN, dC_BSN, dD_BI, dstate_BIN


@triton.jit
def selective_scan_forward(
    x_BSI, dt_BSI, A_IN, B_BSN, C_BSN, D_I, document_BS, state_BIN, y_BSI, last_BIN, kept_BZIN, seq_len,
    CHANNELS: tl.constexpr, N: tl.constexpr, RUN: tl.constexpr, HAS_TAIL: tl.constexpr, TOKENS: tl.constexpr,
    BLOCK_I: tl.constexpr, BLOCK_N: tl.constexpr,
):
    row = tl.program_id(1).to(tl.int64)
    channel, state = tl.program_id(0) * BLOCK_I + tl.arange(0, BLOCK_I), tl.arange(0, BLOCK_N)
    rate_IN = load_states(A_IN, 0, channel, state, CHANNELS, N) * 1.4426950408889634
    D = load_channels(D_I, channel, CHANNELS)
    h_IN = tl.zeros((BLOCK_I, BLOCK_N), tl.float32)
    if state_BIN is not None:
        h_IN = load_states(state_BIN, row, channel, state, CHANNELS, N)
    num_whole, num_runs = seq_len // RUN, tl.cdiv(seq_len, RUN)
    kept = kept_BZIN + row * num_runs * CHANNELS * N
    document = None if document_BS is None else document_BS + row * seq_len
    for run in range(0, num_whole):
        store_states(kept, run, channel, state, h_IN, CHANNELS, N)
        h_IN = forward_run(
            h_IN, x_BSI, dt_BSI, B_BSN, C_BSN, y_BSI, document, rate_IN, D, row, run, channel, state, seq_len,
            CHANNELS, N, RUN, TOKENS, BLOCK_I, BLOCK_N, True)
    if HAS_TAIL:
        store_states(kept, num_whole, channel, state, h_IN, CHANNELS, N)
        h_IN = forward_run(
            h_IN, x_BSI, dt_BSI, B_BSN, C_BSN, y_BSI, document, rate_IN, D, row, num_whole, channel, state, seq_len,
            CHANNELS, N, RUN, TOKENS, BLOCK_I, BLOCK_N, False)
    store_states(last_BIN, row, channel, state, h_IN, CHANNELS, N)


@triton.jit
def forward_run(
    h_IN, x, dt, B, C, y, document, rate_IN, D, row, run, channel, state, seq_len,
    CHANNELS: tl.constexpr, N: tl.constexpr, RUN: tl.constexpr, TOKENS: tl.constexpr,
    BLOCK_I: tl.constexpr, BLOCK_N: tl.constexpr, WHOLE: tl.constexpr,
):
    """The state after a run, whose y it stores. WHOLE: all its tokens exist."""
    ALL_CHANNELS: tl.constexpr = WHOLE and CHANNELS % BLOCK_I == 0
    ALL_STATES: tl.constexpr = WHOLE and N == BLOCK_N
    for tile in range(0, RUN // TOKENS):
        token = run * RUN + tile * TOKENS
        place = row * seq_len + token
        xs = load_tokens(x + place * CHANNELS, channel, token, seq_len, CHANNELS, TOKENS, ALL_CHANNELS)
        dts = load_tokens(dt + place * CHANNELS, channel, token, seq_len, CHANNELS, TOKENS, ALL_CHANNELS)
        Bs = load_tokens(B + place * N, state, token, seq_len, N, TOKENS, ALL_STATES)
        Cs = load_tokens(C + place * N, state, token, seq_len, N, TOKENS, ALL_STATES)
        biases = biases_at_starts(document, token, seq_len, TOKENS, WHOLE)
        ys = ()
        for t in tl.static_range(TOKENS):
            decay = tl.exp2(dts[t][:, None] * rate_IN + biases[t])
            h_IN = decay * h_IN + (dts[t] * xs[t])[:, None] * Bs[t][None, :]
            ys = ys + (tl.sum(h_IN * Cs[t][None, :], 1) + D * xs[t],)
        store_tokens(y + place * CHANNELS, channel, token, seq_len, ys, CHANNELS, TOKENS, ALL_CHANNELS)
    return h_IN


@triton.jit
def selective_scan_backward(
    dy_BSI, dlast_BIN, x_BSI, dt_BSI, A_IN, B_BSN, C_BSN, D_I, document_BS, kept_BZIN, starts_BUIN,
    dx_BSI, ddt_BSI, dA_BIN, shares_2JBSN, dD_BI, dstate_BIN, seq_len,
    CHANNELS: tl.constexpr, N: tl.constexpr, RUN: tl.constexpr, HAS_TAIL: tl.constexpr, TOKENS: tl.constexpr,
    BLOCK_I: tl.constexpr, BLOCK_N: tl.constexpr, BLOCKS: tl.constexpr,
):
    """h_t has gradient g_t = C_t dy_t + decay_{t+1} g_{t+1}; dt_t A has gradient decay_t g_t h_{t-1}.

    Neither is a difference of large terms. A run is gone through forward, for the states that enter its tiles, then
    back, tile by tile, for the states and decays of all tokens of a tile once more.
    """
    row = tl.program_id(1).to(tl.int64)
    state = tl.arange(0, BLOCK_N)
    num_whole, num_runs = seq_len // RUN, tl.cdiv(seq_len, RUN)
    kept, starts = kept_BZIN + row * num_runs * CHANNELS * N, starts_BUIN + row * (RUN // TOKENS) * CHANNELS * N
    stride = tl.num_programs(1).to(tl.int64) * seq_len * N
    shares = shares_2JBSN + tl.program_id(0) * stride
    stride *= tl.num_programs(0)
    document = None if document_BS is None else document_BS + row * seq_len
    num_blocks = BLOCKS
    if CHANNELS % (BLOCKS * BLOCK_I) != 0:
        num_blocks = tl.minimum(BLOCKS, tl.cdiv(CHANNELS, BLOCK_I) - tl.program_id(0) * BLOCKS)
    for block in range(0, num_blocks):
        channel = (tl.program_id(0) * BLOCKS + block) * BLOCK_I + tl.arange(0, BLOCK_I)
        rate_IN = load_states(A_IN, 0, channel, state, CHANNELS, N) * 1.4426950408889634
        D = load_channels(D_I, channel, CHANNELS)
        later_IN = load_states(dlast_BIN, row, channel, state, CHANNELS, N)
        dA_IN, dD = tl.zeros((BLOCK_I, BLOCK_N), tl.float32), tl.zeros((BLOCK_I,), tl.float32)
        if HAS_TAIL:
            later_IN, dA_IN, dD = backward_run(
                later_IN, dA_IN, dD, dy_BSI, x_BSI, dt_BSI, B_BSN, C_BSN, dx_BSI, ddt_BSI, shares, stride, document,
                kept, starts, rate_IN, D, row, num_whole, channel, state, seq_len, block,
                CHANNELS, N, RUN, TOKENS, BLOCK_I, BLOCK_N, BLOCKS, False)
        for step in range(0, num_whole):
            later_IN, dA_IN, dD = backward_run(
                later_IN, dA_IN, dD, dy_BSI, x_BSI, dt_BSI, B_BSN, C_BSN, dx_BSI, ddt_BSI, shares, stride, document,
                kept, starts, rate_IN, D, row, num_whole - 1 - step, channel, state, seq_len, block,
                CHANNELS, N, RUN, TOKENS, BLOCK_I, BLOCK_N, BLOCKS, True)
        store_states(dstate_BIN, row, channel, state, later_IN, CHANNELS, N)
        store_states(dA_BIN, row, channel, state, dA_IN, CHANNELS, N)
        tl.store(dD_BI + row * CHANNELS + channel, dD, mask=channel < CHANNELS)


@triton.jit
def backward_run(
    later_IN, dA_IN, dD, dy, x, dt, B, C, dx, ddt, shares, stride, document, kept, starts, rate_IN, D,
    row, run, channel, state, seq_len, block,
    CHANNELS: tl.constexpr, N: tl.constexpr, RUN: tl.constexpr, TOKENS: tl.constexpr,
    BLOCK_I: tl.constexpr, BLOCK_N: tl.constexpr, BLOCKS: tl.constexpr, WHOLE: tl.constexpr,
):
    """The gradient of the state before a run, from that of the one after it; dA and dD with the run's shares added."""
    # Sums over channels are made of tiles of so many rows.
    ROWS: tl.constexpr = BLOCK_I if BLOCK_I < 2 * TOKENS else 2 * TOKENS
    ALL_CHANNELS: tl.constexpr = WHOLE and CHANNELS % BLOCK_I == 0
    ALL_STATES: tl.constexpr = WHOLE and N == BLOCK_N
    h_IN = load_states(kept, run, channel, state, CHANNELS, N)
    token = run * RUN
    place = row * seq_len + token
    xs = load_tokens(x + place * CHANNELS, channel, token, seq_len, CHANNELS, TOKENS, ALL_CHANNELS)
    dts = load_tokens(dt + place * CHANNELS, channel, token, seq_len, CHANNELS, TOKENS, ALL_CHANNELS)
    Bs = load_tokens(B + place * N, state, token, seq_len, N, TOKENS, ALL_STATES)
    for tile in range(0, RUN // TOKENS - 1):
        store_states(starts, tile, channel, state, h_IN, CHANNELS, N)
        token = run * RUN + tile * TOKENS + TOKENS
        place = row * seq_len + token
        next_xs = load_tokens(x + place * CHANNELS, channel, token, seq_len, CHANNELS, TOKENS, ALL_CHANNELS)
        next_dts = load_tokens(dt + place * CHANNELS, channel, token, seq_len, CHANNELS, TOKENS, ALL_CHANNELS)
        next_Bs = load_tokens(B + place * N, state, token, seq_len, N, TOKENS, ALL_STATES)
        biases = biases_at_starts(document, token - TOKENS, seq_len, TOKENS, WHOLE)
        for t in tl.static_range(TOKENS):
            decay = tl.exp2(dts[t][:, None] * rate_IN + biases[t])
            h_IN = decay * h_IN + (dts[t] * xs[t])[:, None] * Bs[t][None, :]
        xs, dts, Bs = next_xs, next_dts, next_Bs

    for step in range(0, RUN // TOKENS):
        tile = RUN // TOKENS - 1 - step
        token = run * RUN + tile * TOKENS
        place = row * seq_len + token
        xs = load_tokens(x + place * CHANNELS, channel, token, seq_len, CHANNELS, TOKENS, ALL_CHANNELS)
        dts = load_tokens(dt + place * CHANNELS, channel, token, seq_len, CHANNELS, TOKENS, ALL_CHANNELS)
        dys = load_tokens(dy + place * CHANNELS, channel, token, seq_len, CHANNELS, TOKENS, ALL_CHANNELS)
        Bs = load_tokens(B + place * N, state, token, seq_len, N, TOKENS, ALL_STATES)
        Cs = load_tokens(C + place * N, state, token, seq_len, N, TOKENS, ALL_STATES)
        biases = biases_at_starts(document, token, seq_len, TOKENS, WHOLE)
        decays, befores, dCs = (), (), ()
        for t in tl.static_range(TOKENS):
            decay = tl.exp2(dts[t][:, None] * rate_IN + biases[t])
            decays, befores = decays + (decay,), befores + (h_IN,)
            h_IN = decay * h_IN + (dts[t] * xs[t])[:, None] * Bs[t][None, :]
            dCs = dCs + (fold(h_IN * dys[t][:, None], ROWS),)

        dxs, ddts, dBs = (), (), ()
        for t in tl.static_range(TOKENS - 1, -1, -1):
            g_IN = Cs[t][None, :] * dys[t][:, None] + later_IN
            dBs = (fold(g_IN * (dts[t] * xs[t])[:, None], ROWS),) + dBs
            dvalue = tl.sum(g_IN * Bs[t][None, :], 1)
            later_IN = g_IN * decays[t]
            dlog_IN = later_IN * befores[t]
            dA_IN += dlog_IN * dts[t][:, None]
            dD += dys[t] * xs[t]
            ddts = (dvalue * xs[t] + tl.sum(dlog_IN * rate_IN, 1) * 0.6931471805599453,) + ddts
            dxs = (dvalue * dts[t] + D * dys[t],) + dxs
        # The first tile's is not there to be loaded after it: what is loaded then is not used.
        h_IN = load_states(starts, tl.maximum(tile - 1, 0), channel, state, CHANNELS, N)
        add_shares(
            shares + place * N, stride, state, token, seq_len, dBs + dCs, block, N, TOKENS, ROWS, BLOCKS)
        store_tokens(ddt + place * CHANNELS, channel, token, seq_len, ddts, CHANNELS, TOKENS, ALL_CHANNELS)
        store_tokens(dx + place * CHANNELS, channel, token, seq_len, dxs, CHANNELS, TOKENS, ALL_CHANNELS)
    return later_IN, dA_IN, dD
