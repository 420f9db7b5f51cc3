"""The short causal convolution in front of a state-space scan.

Shapes: B batch, S sequence, C channels, K taps, R runs of tokens.
"""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from kernels.backend import runs_triton
from kernels.language import INTERPRETING, narrow, tl, triton, widen
from kernels.operator import operator

TOKENS = 8 if INTERPRETING else 64
"""Tokens of a program, which takes them one by one, so that each input is loaded once."""

AHEAD = tl.constexpr(4)
"""Tokens whose inputs a program has asked for before it needs them. With one alone a multiprocessor's programs together
wait for 12 KB, and to keep the memory busy takes 22: 4.2 TB/s over 132 of them, for 0.7 microseconds.
As many names hold them."""

CHANNELS = 256
"""Channels of a program: 16 bytes in bfloat16 for each thread of a warp."""

MOST_TAPS = 4
"""Of Triton's body, which holds so many inputs in registers; PyTorch's takes any number."""


def causal_convolution(
    x_BSC: Tensor,
    weight_CK: Tensor,
    bias_C: Tensor,
    document_BS: Tensor | None = None,
    tail_BKC: Tensor | None = None,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """SiLU of a depthwise causal convolution: y_t = silu(bias + sum_k weight[:, k] * x_{t - (K - 1) + k}).

    Args:
        x_BSC: inputs of any float dtype; arithmetic is float32 at least. May be a part of wider rows.
        weight_CK, bias_C: one filter per channel; the last tap meets the token itself.
        document_BS: int64, non-decreasing along S; inputs of another document count as zero.
        tail_BKC: [B, K-1, C], the inputs before the first, of the first token's document; None: zeros.

    Returns:
        y_BSC of x's dtype, and the last K-1 inputs [B, K-1, C]: the tail of what follows.
    """
    seq_len, num_taps = x_BSC.shape[1], weight_CK.shape[1]
    if tail_BKC is not None:
        assert tail_BKC.shape[1] == num_taps - 1, f"a tail of {tail_BKC.shape[1]} inputs for {num_taps} taps"
    if num_taps <= MOST_TAPS and runs_triton(backend, x_BSC, weight_CK, bias_C):
        x_BSC = x_BSC if x_BSC.stride(2) == 1 else x_BSC.contiguous()
        y_BSC = _CausalConvolution.apply(x_BSC, weight_CK, bias_C.contiguous(), document_BS, tail_BKC)
        return y_BSC, _last_inputs(x_BSC, tail_BKC, num_taps - 1)
    if tail_BKC is None:
        x_BSC = F.pad(x_BSC, (0, 0, num_taps - 1, 0))
    else:
        x_BSC = torch.cat([tail_BKC.to(x_BSC.dtype), x_BSC], dim=1)
    wide = torch.promote_types(x_BSC.dtype, torch.float32)
    inputs_BSC, weight_CK = x_BSC.to(wide), weight_CK.to(wide)
    if document_BS is not None:
        padded_document_BS = torch.cat([document_BS[:, :1].expand(-1, num_taps - 1), document_BS], dim=1)

    y_BSC = bias_C.to(wide)
    for tap in range(num_taps):
        tapped_BSC = inputs_BSC[:, tap : tap + seq_len]
        if document_BS is not None and tap < num_taps - 1:
            same_BS = padded_document_BS[:, tap : tap + seq_len] == document_BS
            tapped_BSC = tapped_BSC * same_BS[..., None]
        y_BSC = torch.addcmul(y_BSC, tapped_BSC, weight_CK[:, tap])
    # A copy, so that a cache does not keep all inputs alive.
    return F.silu(y_BSC).to(x_BSC.dtype), x_BSC[:, seq_len:].clone()


def _last_inputs(x_BSC: Tensor, tail_BKC: Tensor | None, num: int) -> Tensor:
    """A copy, so that a cache does not keep all inputs alive."""
    missing = num - x_BSC.shape[1]
    if missing <= 0:
        return x_BSC[:, -missing:].clone()
    if tail_BKC is None:
        return F.pad(x_BSC, (0, 0, missing, 0))
    return torch.cat([tail_BKC[:, num - missing :].to(x_BSC.dtype), x_BSC], dim=1)


class _CausalConvolution(torch.autograd.Function):
    """Keeps its arguments, and computes what the activation saw again."""

    @staticmethod
    def forward(
        ctx: FunctionCtx, x_BSC: Tensor, weight_CK: Tensor, bias_C: Tensor, document_BS: Tensor | None,
        tail_BKC: Tensor | None,
    ) -> Tensor:
        tail_BKC = None if tail_BKC is None else tail_BKC.to(x_BSC.dtype).contiguous()
        document_BS = None if document_BS is None else document_BS.contiguous()
        ctx.save_for_backward(x_BSC, weight_CK, bias_C, document_BS, tail_BKC)
        return _forward(x_BSC, weight_CK.contiguous(), bias_C, document_BS, tail_BKC)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, dy_BSC: Tensor) -> tuple[Tensor | None, ...]:
        x_BSC, weight_CK, bias_C, document_BS, tail_BKC = ctx.saved_tensors
        dx_BSC, dtail_BKC, shares_BRKC = _backward(
            dy_BSC.contiguous(), x_BSC, weight_CK.contiguous(), bias_C, document_BS, tail_BKC
        )
        dfilter_KC = shares_BRKC.sum((0, 1))
        dweight_CK, dbias_C = dfilter_KC[:-1].t().to(weight_CK.dtype), dfilter_KC[-1].to(bias_C.dtype)
        return dx_BSC, dweight_CK, dbias_C, None, None if tail_BKC is None else dtail_BKC


def _grid(x_BSC: Tensor) -> tuple[int, int, int]:
    batch_size, seq_len, num_channels = x_BSC.shape
    return triton.cdiv(seq_len, TOKENS), triton.cdiv(num_channels, CHANNELS), batch_size


def _sizes(weight_CK: Tensor) -> dict[str, int]:
    return {"K": weight_CK.shape[1], "TOKENS": TOKENS, "BLOCK": CHANNELS, "num_warps": 1}


def _fake_forward(
    x_BSC: Tensor, weight_CK: Tensor, bias_C: Tensor, document_BS: Tensor | None, tail_BKC: Tensor | None
) -> Tensor:
    return x_BSC.new_empty(x_BSC.shape)


@operator("causal_convolution", _fake_forward)
def _forward(
    x_BSC: Tensor, weight_CK: Tensor, bias_C: Tensor, document_BS: Tensor | None, tail_BKC: Tensor | None
) -> Tensor:
    y_BSC = _fake_forward(x_BSC, weight_CK, bias_C, document_BS, tail_BKC)
    convolution_forward[_grid(x_BSC)](
        x_BSC, weight_CK, bias_C, document_BS, tail_BKC, y_BSC, *x_BSC.shape[1:], *x_BSC.stride()[:2],
        **_sizes(weight_CK),
    )
    return y_BSC


def _fake_backward(
    dy_BSC: Tensor, x_BSC: Tensor, weight_CK: Tensor, bias_C: Tensor, document_BS: Tensor | None,
    tail_BKC: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    (batch_size, _, num_channels), num_taps = x_BSC.shape, weight_CK.shape[1]
    num_runs = _grid(x_BSC)[0]
    return (
        torch.empty_like(dy_BSC), dy_BSC.new_empty(batch_size, num_taps - 1, num_channels),
        dy_BSC.new_empty(batch_size, num_runs, num_taps + 1, num_channels, dtype=torch.float32),
    )


@operator("causal_convolution_backward", _fake_backward)
def _backward(
    dy_BSC: Tensor, x_BSC: Tensor, weight_CK: Tensor, bias_C: Tensor, document_BS: Tensor | None,
    tail_BKC: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """dx, dtail (unwritten without a tail), and each program's share of the gradients of weight and bias, in float32:
    [B, R, K + 1, C], the bias last."""
    dx_BSC, dtail_BKC, shares_BRKC = _fake_backward(dy_BSC, x_BSC, weight_CK, bias_C, document_BS, tail_BKC)
    convolution_backward[_grid(x_BSC)](
        dy_BSC, x_BSC, weight_CK, bias_C, document_BS, tail_BKC, dx_BSC, None if tail_BKC is None else dtail_BKC,
        shares_BRKC, *x_BSC.shape[1:], *x_BSC.stride()[:2], **_sizes(weight_CK),
    )
    return dx_BSC, dtail_BKC, shares_BRKC


@triton.jit
def convolution_forward(
    x_BSC, weight_CK, bias_C, document_BS, tail_BKC, y_BSC, seq_len, C, stride_B, stride_S,
    K: tl.constexpr, TOKENS: tl.constexpr, BLOCK: tl.constexpr,
):
    """A program walks along TOKENS tokens and holds the three inputs before each."""
    row, first = tl.program_id(2).to(tl.int64), tl.program_id(0) * TOKENS
    channel = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    is_channel = channel < C
    bias = widen(tl.load(bias_C + channel, mask=is_channel, other=0.0))
    w0, w1 = filter_at(weight_CK, channel, C, 0, K), filter_at(weight_CK, channel, C, 1, K)
    w2, w3 = filter_at(weight_CK, channel, C, 2, K), filter_at(weight_CK, channel, C, 3, K)
    x, document = x_BSC + row * stride_B, None if document_BS is None else document_BS + row * seq_len
    tail = None if tail_BKC is None else tail_BKC + row * (K - 1) * C
    x1 = input_before(x, tail, document, channel, C, stride_S, first, 1, K)
    x2 = input_before(x, tail, document, channel, C, stride_S, first, 2, K)
    x3 = input_before(x, tail, document, channel, C, stride_S, first, 3, K)
    last = tl.minimum(first + TOKENS, seq_len)
    next0, next1 = row_at(x, first, last, channel, C, stride_S), row_at(x, first + 1, last, channel, C, stride_S)
    next2, next3 = row_at(x, first + 2, last, channel, C, stride_S), row_at(x, first + 3, last, channel, C, stride_S)
    for start in range(first, last, AHEAD):
        for step in tl.static_range(AHEAD):
            token = start + step
            x0, next0, next1, next2 = widen(next0), next1, next2, next3
            next3 = row_at(x, token + AHEAD, last, channel, C, stride_S)
            same = is_same_document(document, token, seq_len)
            x1, x2, x3 = x1 * same, x2 * same, x3 * same
            z = bias + w0 * x0 + w1 * x1 + w2 * x2 + w3 * x3
            y = y_BSC + (row * seq_len + token) * C + channel
            is_own = channel < tl.where(token < last, C, 0)
            tl.store(y, narrow(z * tl.sigmoid(z), y_BSC.dtype.element_ty), mask=is_own)
            x1, x2, x3 = x0, x1, x2


@triton.jit
def convolution_backward(
    dy_BSC, x_BSC, weight_CK, bias_C, document_BS, tail_BKC, dx_BSC, dtail_BKC, share_BRKC, seq_len, C, stride_B,
    stride_S, K: tl.constexpr, TOKENS: tl.constexpr, BLOCK: tl.constexpr,
):
    """A program walks along TOKENS tokens and the three after them, which see the last of its own.

    With g the gradient of what the activation saw, token t adds w_j g_t to dx of token t - j, of the same document;
    dx of token t - 3 is then complete.
    """
    row, first = tl.program_id(2).to(tl.int64), tl.program_id(0) * TOKENS
    channel = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    is_channel = channel < C
    bias = widen(tl.load(bias_C + channel, mask=is_channel, other=0.0))
    w0, w1 = filter_at(weight_CK, channel, C, 0, K), filter_at(weight_CK, channel, C, 1, K)
    w2, w3 = filter_at(weight_CK, channel, C, 2, K), filter_at(weight_CK, channel, C, 3, K)
    x, document = x_BSC + row * stride_B, None if document_BS is None else document_BS + row * seq_len
    tail = None if tail_BKC is None else tail_BKC + row * (K - 1) * C
    x1 = input_before(x, tail, document, channel, C, stride_S, first, 1, K)
    x2 = input_before(x, tail, document, channel, C, stride_S, first, 2, K)
    x3 = input_before(x, tail, document, channel, C, stride_S, first, 3, K)
    # Whether the tokens before are of the current one's document: those before `first` are another program's.
    same1, same2, same3 = 1.0, 1.0, 1.0
    dx1, dx2, dx3 = tl.zeros((BLOCK,), tl.float32), tl.zeros((BLOCK,), tl.float32), tl.zeros((BLOCK,), tl.float32)
    dw0, dw1 = tl.zeros((BLOCK,), tl.float32), tl.zeros((BLOCK,), tl.float32)
    dw2, dw3 = tl.zeros((BLOCK,), tl.float32), tl.zeros((BLOCK,), tl.float32)
    dbias = tl.zeros((BLOCK,), tl.float32)
    dy, last = dy_BSC + row * seq_len * C, tl.minimum(first + TOKENS + 3, seq_len)
    next0, next1 = row_at(x, first, last, channel, C, stride_S), row_at(x, first + 1, last, channel, C, stride_S)
    next2, next3 = row_at(x, first + 2, last, channel, C, stride_S), row_at(x, first + 3, last, channel, C, stride_S)
    dnext0, dnext1 = row_at(dy, first, last, channel, C, C), row_at(dy, first + 1, last, channel, C, C)
    dnext2, dnext3 = row_at(dy, first + 2, last, channel, C, C), row_at(dy, first + 3, last, channel, C, C)
    # Three tokens more, where nothing is left to load, complete the last of a sequence.
    for start in range(first, tl.minimum(first + TOKENS, seq_len) + 3, AHEAD):
        for step in tl.static_range(AHEAD):
            token = start + step
            x0, next0, next1, next2 = widen(next0), next1, next2, next3
            next3 = row_at(x, token + AHEAD, last, channel, C, stride_S)
            g, dnext0, dnext1, dnext2 = widen(dnext0), dnext1, dnext2, dnext3
            dnext3 = row_at(dy, token + AHEAD, last, channel, C, C)
            same = is_same_document(document, token, seq_len)
            x1, x2, x3 = x1 * same, x2 * same, x3 * same
            same1, same2, same3 = same1 * same, same2 * same, same3 * same
            z = bias + w0 * x0 + w1 * x1 + w2 * x2 + w3 * x3
            sigmoid = tl.sigmoid(z)
            g *= sigmoid * (1 + z * (1 - sigmoid))
            own = g * tl.where(token < first + TOKENS, 1.0, 0.0)
            dw0 += own * x0
            dw1 += own * x1
            dw2 += own * x2
            dw3 += own * x3
            dbias += own

            dx3 += same3 * w3 * g
            done = token - 3
            is_own = channel < tl.where((done >= first) & (done < first + TOKENS) & (done < seq_len), C, 0)
            dx = dx_BSC + (row * seq_len + done) * C + channel
            tl.store(dx, narrow(dx3, dx_BSC.dtype.element_ty), mask=is_own)
            if dtail_BKC is not None:
                is_tail = channel < tl.where((done < 0) & (done + K - 1 >= 0), C, 0)
                dtail = dtail_BKC + (row * (K - 1) + done + K - 1) * C + channel
                tl.store(dtail, narrow(dx3, dtail_BKC.dtype.element_ty), mask=is_tail)
            dx3, dx2, dx1 = dx2 + same2 * w2 * g, dx1 + same1 * w1 * g, w0 * g
            x1, x2, x3 = x0, x1, x2
            same1, same2, same3 = 1.0, same1, same2

    share = share_BRKC + (row * tl.num_programs(0) + tl.program_id(0)) * (K + 1) * C + channel
    tl.store(share + K * C, dbias, mask=is_channel)
    tl.store(share + (K - 1) * C, dw0, mask=is_channel)
    if K > 1:
        tl.store(share + (K - 2) * C, dw1, mask=is_channel)
    if K > 2:
        tl.store(share + (K - 3) * C, dw2, mask=is_channel)
    if K > 3:
        tl.store(share + (K - 4) * C, dw3, mask=is_channel)


@triton.jit
def filter_at(weight_CK, channel, C, BACK: tl.constexpr, K: tl.constexpr):
    """The tap that meets the input BACK tokens before; zero where the filter does not reach so far."""
    if BACK < K:
        return widen(tl.load(weight_CK + channel * K + (K - 1 - BACK), mask=channel < C, other=0.0))
    else:
        return tl.zeros(channel.shape, tl.float32)


@triton.jit
def row_at(x, token, last, channel, C, stride_S):
    """A token's channels as they lie in memory, zeros from token `last` on."""
    is_there = channel < tl.where(token < last, C, 0)
    return tl.load(x + tl.cast(token, tl.int64) * stride_S + channel, mask=is_there, other=0.0)


@triton.jit
def input_before(x, tail, document, channel, C, stride_S, first, BACK: tl.constexpr, K: tl.constexpr):
    """The input BACK tokens before token `first`, zero if it is of another document; of the tail, if there is one."""
    place = first - BACK
    limit = tl.where(place >= 0, C, 0)
    if document is not None:
        same = tl.load(document + tl.maximum(place, 0)) == tl.load(document + first)
        limit = tl.where(same, limit, 0)
    value = widen(tl.load(x + tl.cast(place, tl.int64) * stride_S + channel, mask=channel < limit, other=0.0))
    if tail is not None:
        inside = tl.where(place + K - 1 >= 0, C, 0)
        inside = tl.where(place < 0, inside, 0)
        value += widen(tl.load(tail + (place + K - 1) * C + channel, mask=channel < inside, other=0.0))
    return value


@triton.jit
def is_same_document(document, token, seq_len):
    """1.0 where a token and the one before it are of one document, 0.0 where they are not; 1.0 at the ends."""
    if document is not None:
        here, before = tl.minimum(token, seq_len - 1), tl.maximum(tl.minimum(token, seq_len) - 1, 0)
        return tl.where(tl.load(document + here) == tl.load(document + before), 1.0, 0.0)
    else:
        return 1.0
