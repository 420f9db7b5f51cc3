"""What the kernels of Mamba-2's scan share: how much is left of what, chunk by chunk, and tiles of their tensors.

B batch, S sequence, Z chunks, Q tokens of a chunk, K of them taken at a time, H heads, V vectors.
"""

from kernels.language import tl, triton

NUM_VECTORS = 6
"""Of each chunk and head; see `ssd_decays`."""
V, LOG2E, LEAST = tl.constexpr(NUM_VECTORS), tl.constexpr(1.4426950408889634), tl.constexpr(-160.0)
DT, ENTERS, LEAVES, KEPT, HIGH, LOW = (tl.constexpr(place) for place in range(NUM_VECTORS))


@triton.jit
def ssd_decays(
    dt_BSH, A_H, document_BS, decays_BHZVQ, segment_BZQ, seq_len, H, Q: tl.constexpr, BLOCK_H: tl.constexpr
):
    """A program sums dt A of one chunk and BLOCK_H heads, and writes what follows, token by token.

    DT: dt, zero after the end. ENTERS: how much a token sees of a state that enters the chunk, and the last token, how
    much of it leaves. LEAVES: how much of a token is in the state that leaves the chunk, KEPT: that times dt. HIGH +
    LOW: log2 of ENTERS, were there no documents; two float32 keep the digits of differences behind a strong decay.
    segment: how many documents began in the chunk, up to a token, itself included.
    """
    chunk, row = tl.program_id(0), tl.program_id(2).to(tl.int64)
    lane, head = tl.arange(0, Q), tl.program_id(1) * BLOCK_H + tl.arange(0, BLOCK_H)
    token = chunk * Q + lane
    segment_Q = tl.zeros((Q,), tl.int32)
    if document_BS is not None:
        document_S, follows_Q = document_BS + row * seq_len, (token > 0) & (token < seq_len)
        here_Q = tl.load(document_S + token, mask=follows_Q, other=0)
        before_Q = tl.load(document_S + token - 1, mask=follows_Q, other=0)
        segment_Q = tl.cumsum((here_Q != before_Q).to(tl.int32), 0)
        if tl.program_id(1) == 0:
            tl.store(segment_BZQ + (row * tl.num_programs(0) + chunk) * Q + lane, segment_Q)
    inside_QH = (token[:, None] < seq_len) & (head[None, :] < H)
    dt_QH = tl.load(dt_BSH + (row * seq_len + token[:, None]) * H + head[None, :], mask=inside_QH, other=0.0)
    A_H = tl.load(A_H + head, mask=head < H, other=0.0)
    # Beyond LEAST nothing is left in float32, and sums would only lose digits.
    log_QH = tl.maximum(dt_QH.to(tl.float64) * A_H.to(tl.float64)[None, :] * LOG2E, LEAST)
    sum_QH = tl.cumsum(log_QH, 0)
    left_QH = (tl.sum(log_QH, 0)[None, :] - sum_QH).to(tl.float32)
    high_QH = sum_QH.to(tl.float32)
    enters_QH = tl.exp2(tl.where(segment_Q[:, None] == 0, high_QH, -float("inf")))
    leaves_QH = tl.exp2(tl.where(segment_Q[:, None] == tl.max(segment_Q, 0), left_QH, -float("inf")))

    decays = decays_BHZVQ + ((row * H + head[None, :]) * tl.num_programs(0) + chunk) * (V * Q) + lane[:, None]
    known_QH = (lane[:, None] < Q) & (head[None, :] < H)
    tl.store(decays + DT * Q, dt_QH, mask=known_QH)
    tl.store(decays + ENTERS * Q, enters_QH, mask=known_QH)
    tl.store(decays + LEAVES * Q, leaves_QH, mask=known_QH)
    tl.store(decays + KEPT * Q, leaves_QH * dt_QH, mask=known_QH)
    tl.store(decays + HIGH * Q, high_QH, mask=known_QH)
    tl.store(decays + LOW * Q, (sum_QH - high_QH.to(tl.float64)).to(tl.float32), mask=known_QH)


@triton.jit
def pair_decays(
    decays_VQ, segment_Q, first: tl.constexpr, Q: tl.constexpr, K: tl.constexpr, EXACT: tl.constexpr,
    TRANSPOSED: tl.constexpr = False,
):
    """exp(sum of dt A after token s, up to t), zero for s after t or of another document: [Q of t, K of s].

    The columns are the chunk's tokens from `first` on. TRANSPOSED: [Q of s, K of t]. EXACT: to float32's digits, not
    to bfloat16's.
    """
    row, column = tl.arange(0, Q), first + tl.arange(0, K)
    high, low = decays_VQ + HIGH * Q, decays_VQ + LOW * Q
    exponent_QK = tl.load(high + row)[:, None] - tl.load(high + column)[None, :]
    if EXACT:
        exponent_QK += tl.load(low + row)[:, None] - tl.load(low + column)[None, :]
    reached_QK = row[:, None] >= column[None, :]
    if TRANSPOSED:
        exponent_QK, reached_QK = -exponent_QK, row[:, None] <= column[None, :]
    if segment_Q is not None:
        reached_QK &= tl.load(segment_Q + row)[:, None] == tl.load(segment_Q + column)[None, :]
    return tl.exp2(tl.where(reached_QK, exponent_QK, -float("inf")))


@triton.jit
def load_rows(pointer, row_stride, num_rows, width, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """[ROWS, BLOCK] of a matrix of num_rows rows of width values each, zeros outside."""
    row, column = tl.arange(0, ROWS), tl.arange(0, BLOCK)
    mask = (row[:, None] < num_rows) & (column[None, :] < width)
    return tl.load(pointer + row[:, None] * row_stride + column[None, :], mask=mask, other=0.0)


@triton.jit
def store_rows(pointer, row_stride, num_rows, width, tile, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """The counterpart of `load_rows`."""
    row, column = tl.arange(0, ROWS), tl.arange(0, BLOCK)
    mask = (row[:, None] < num_rows) & (column[None, :] < width)
    tl.store(pointer + row[:, None] * row_stride + column[None, :], tile, mask=mask)
