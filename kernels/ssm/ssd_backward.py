"""Mamba-2's scan backward, in Triton, of chunks whose entering states and leaving states' gradients are given.

B batch, S sequence, Z chunks, Q tokens of a chunk, H heads, G groups, R runs of heads that a program takes one after
another, P head width, N state, V vectors of `ssd_decays`, W of this file.
"""

from kernels.language import dot, narrow, tl, triton, widen
from kernels.ssm.ssd_chunk import DT, ENTERS, KEPT, LEAVES, V, load_rows, pair_decays, store_rows

NUM_GRADIENTS = 5
"""Vectors of each chunk and head; see `ssd_decay_gradients`."""
W = tl.constexpr(NUM_GRADIENTS)
PAIRED, PASSING, READ, WRITTEN, SKIPPED = (tl.constexpr(place) for place in range(NUM_GRADIENTS))


@triton.jit
def ssd_head_gradients(
    dy_BSHP, x_BSHP, decays_BHZVQ, segment_BZQ, B_BSGN, C_BSGN, D_H, entering_BZHPN, dleaving_BZHPN, dx_BSHP,
    gradients_BHZWQ, seq_len, H: tl.constexpr, G: tl.constexpr, P: tl.constexpr, N: tl.constexpr, Q: tl.constexpr,
    BLOCK_P: tl.constexpr, BLOCK_N: tl.constexpr,
):
    """A program computes dx of one head in one chunk, and what `ssd_decay_gradients` takes; of states it takes BLOCK_N
    columns after another."""
    dtype: tl.constexpr = x_BSHP.dtype.element_ty
    head, chunk, row = tl.program_id(0) % H, tl.program_id(0) // H, tl.program_id(1).to(tl.int64)
    num_chunks, group, lane = tl.num_programs(0) // H, head // (H // G), tl.arange(0, Q)
    token, left, place = row * seq_len + chunk * Q, seq_len - chunk * Q, (row * H + head) * num_chunks + chunk
    decays, gradients = decays_BHZVQ + place * (V * Q) + lane, gradients_BHZWQ + place * (W * Q) + lane
    segment = None if segment_BZQ is None else segment_BZQ + (row * num_chunks + chunk) * Q
    state = ((row * num_chunks + chunk) * H + head) * P * N
    vectors = (token * G + group) * N
    read_QP, dx_QP = tl.zeros((Q, BLOCK_P), tl.float32), tl.zeros((Q, BLOCK_P), tl.float32)
    # Squares are [s, t], but for one below.
    scores_QQ, through = tl.zeros((Q, Q), tl.float32), 0.0
    for block in range(0, N, BLOCK_N):
        entering_PN = load_rows(entering_BZHPN + state + block, N, P, N - block, BLOCK_P, BLOCK_N)
        dleaving_PN = load_rows(dleaving_BZHPN + state + block, N, P, N - block, BLOCK_P, BLOCK_N)
        B_QN = load_rows(B_BSGN + vectors + block, G * N, left, N - block, Q, BLOCK_N)
        C_QN = load_rows(C_BSGN + vectors + block, G * N, left, N - block, Q, BLOCK_N)
        read_QP = dot(C_QN, tl.trans(entering_PN), read_QP)
        dx_QP = dot(B_QN, tl.trans(dleaving_PN), dx_QP)
        scores_QQ = dot(B_QN, tl.trans(C_QN), scores_QQ)
        through += tl.sum(tl.sum(widen(entering_PN) * widen(dleaving_PN), 1), 0)

    x_QP = load_rows(x_BSHP + (token * H + head) * P, H * P, left, P, Q, BLOCK_P)
    dy_QP = load_rows(dy_BSHP + (token * H + head) * P, H * P, left, P, Q, BLOCK_P)
    dt_Q, enters_Q, leaves_Q = tl.load(decays + DT * Q), tl.load(decays + ENTERS * Q), tl.load(decays + LEAVES * Q)
    read_Q = tl.sum(read_QP * widen(dy_QP), 1) * enters_Q
    # What enters and leaves is as if read by the last token.
    tl.store(gradients + READ * Q, read_Q + tl.where(lane == Q - 1, through * enters_Q, 0.0))
    dx_QP *= leaves_Q[:, None]
    tl.store(gradients + WRITTEN * Q, tl.sum(dx_QP * widen(x_QP), 1))

    products_QQ = dot(x_QP, tl.trans(dy_QP), tl.zeros((Q, Q), tl.float32))
    same_QQ = lane[:, None] == lane[None, :]
    tl.store(gradients + SKIPPED * Q, tl.sum(tl.where(same_QQ, products_QQ, 0.0), 1))
    scores_QQ *= pair_decays(decays_BHZVQ + place * (V * Q), segment, 0, Q, Q, dtype == tl.float32, True)
    products_QQ *= scores_QQ
    tl.store(gradients + PAIRED * Q, tl.sum(products_QQ, 1))
    products_QQ = narrow(products_QQ * dt_Q[:, None], dtype)
    # [s before k] times [s, t] is [k, t].
    before_QQ = narrow(tl.where(lane[:, None] > lane[None, :], 1.0, 0.0), dtype)
    passing_QQ = dot(before_QQ, products_QQ, tl.zeros((Q, Q), tl.float32))
    passing_QQ = tl.where(lane[:, None] <= lane[None, :], passing_QQ, 0.0)
    tl.store(gradients + PASSING * Q, tl.sum(passing_QQ, 1))

    scores_QQ = narrow(scores_QQ * dt_Q[:, None] + tl.where(same_QQ, tl.load(D_H + head), 0.0), dtype)
    dx_QP = narrow(dot(scores_QQ, dy_QP, dx_QP * dt_Q[:, None]), dtype)
    store_rows(dx_BSHP + (token * H + head) * P, H * P, left, P, dx_QP, Q, BLOCK_P)


@triton.jit
def ssd_group_gradients(
    dy_BSHP, x_BSHP, decays_BHZVQ, segment_BZQ, B_BSGN, C_BSGN, entering_BZHPN, dleaving_BZHPN, dB_RBSGN, dC_RBSGN,
    seq_len, HEADS, H: tl.constexpr, G: tl.constexpr, P: tl.constexpr, N: tl.constexpr, Q: tl.constexpr,
    BLOCK_P: tl.constexpr, BLOCK_N: tl.constexpr,
):
    """A program sums BLOCK_N columns of dB and dC of one chunk over HEADS heads of a group, BLOCK_P of a head's width
    after another."""
    dtype: tl.constexpr = x_BSHP.dtype.element_ty
    blocks, runs = tl.cdiv(N, BLOCK_N), tl.cdiv(H // G, HEADS)
    block, run = tl.program_id(0) % blocks * BLOCK_N, tl.program_id(0) // blocks % runs
    group, chunk = tl.program_id(0) // blocks // runs % G, tl.program_id(0) // blocks // runs // G
    num_chunks, row = tl.num_programs(0) // (blocks * runs * G), tl.program_id(1).to(tl.int64)
    token, left, lane = row * seq_len + chunk * Q, seq_len - chunk * Q, tl.arange(0, Q)
    segment = None if segment_BZQ is None else segment_BZQ + (row * num_chunks + chunk) * Q
    vectors = (token * G + group) * N + block
    B_QN = load_rows(B_BSGN + vectors, G * N, left, N - block, Q, BLOCK_N)
    C_QN = load_rows(C_BSGN + vectors, G * N, left, N - block, Q, BLOCK_N)
    dB_QN, dC_QN = tl.zeros((Q, BLOCK_N), tl.float32), tl.zeros((Q, BLOCK_N), tl.float32)
    begin = group * (H // G) + run * HEADS
    for head in range(begin, tl.minimum(begin + HEADS, (group + 1) * (H // G))):
        decays = decays_BHZVQ + ((row * H + head) * num_chunks + chunk) * (V * Q)
        matrix, state = (token * H + head) * P, ((row * num_chunks + chunk) * H + head) * P * N + block
        enters_Q, kept_Q = tl.load(decays + ENTERS * Q + lane), tl.load(decays + KEPT * Q + lane)
        products_QQ = tl.zeros((Q, Q), tl.float32)
        for first in range(0, P, BLOCK_P):
            states = state + first * N
            entering_PN = load_rows(entering_BZHPN + states, N, P - first, N - block, BLOCK_P, BLOCK_N)
            dleaving_PN = load_rows(dleaving_BZHPN + states, N, P - first, N - block, BLOCK_P, BLOCK_N)
            x_QP = load_rows(x_BSHP + matrix + first, H * P, left, P - first, Q, BLOCK_P)
            dy_QP = load_rows(dy_BSHP + matrix + first, H * P, left, P - first, Q, BLOCK_P)
            products_QQ = dot(dy_QP, tl.trans(x_QP), products_QQ)
            dread_QP = narrow(widen(dy_QP) * enters_Q[:, None], dtype)
            dC_QN = dot(dread_QP, entering_PN, dC_QN)
            kept_QP = narrow(widen(x_QP) * kept_Q[:, None], dtype)
            dB_QN = dot(kept_QP, dleaving_PN, dB_QN)
        products_QQ *= pair_decays(decays, segment, 0, Q, Q, dtype == tl.float32)
        products_QQ = narrow(products_QQ * tl.load(decays + DT * Q + lane)[None, :], dtype)
        dC_QN = dot(products_QQ, B_QN, dC_QN)
        dB_QN = dot(tl.trans(products_QQ), C_QN, dB_QN)
    vectors += (run * tl.num_programs(1)).to(tl.int64) * seq_len * G * N
    store_rows(dB_RBSGN + vectors, G * N, left, N - block, narrow(dB_QN, dB_RBSGN.dtype.element_ty), Q, BLOCK_N)
    store_rows(dC_RBSGN + vectors, G * N, left, N - block, narrow(dC_QN, dC_RBSGN.dtype.element_ty), Q, BLOCK_N)


@triton.jit
def ssd_decay_gradients(
    gradients_BHZWQ, dt_BSH, A_H, ddt_BSH, dA_BZH, dD_BZH, seq_len, H, Q: tl.constexpr, BLOCK_H: tl.constexpr
):
    """A program turns the vectors of one chunk and BLOCK_H heads into ddt and shares of dA and dD.

    Of each token k: PAIRED, the gradient of dt in dt x by later tokens of the chunk, WRITTEN, by what leaves it;
    SKIPPED, dy . x. The gradient of dt A is the sum of all that this decay lies between: PASSING, pairs t >= k > s;
    what enters the chunk and is READ at t >= k; and what is WRITTEN at s < k, times dt. Each term bears its decay:
    differences of sums without would, behind a strong decay, leave nothing but rounding.
    """
    chunk, row = tl.program_id(0), tl.program_id(2).to(tl.int64)
    lane, head = tl.arange(0, Q), tl.program_id(1) * BLOCK_H + tl.arange(0, BLOCK_H)
    known_QH = (lane[:, None] < Q) & (head[None, :] < H)
    inside_QH = (lane[:, None] < seq_len - chunk * Q) & known_QH
    scalars = (row * seq_len + chunk * Q + lane[:, None]) * H + head[None, :]
    vectors = gradients_BHZWQ + ((row * H + head[None, :]) * tl.num_programs(0) + chunk) * (W * Q) + lane[:, None]
    dt_QH = tl.load(dt_BSH + scalars, mask=inside_QH, other=0.0)
    after_QH = (lane[:, None] > 0) & known_QH
    before_QH = tl.load(vectors + WRITTEN * Q - 1, mask=after_QH, other=0.0)
    before_QH *= tl.load(dt_BSH + scalars - H, mask=after_QH & inside_QH, other=0.0)
    dlog_QH = tl.load(vectors + PASSING * Q, mask=known_QH, other=0.0) + tl.cumsum(before_QH, 0)
    dlog_QH += tl.cumsum(tl.load(vectors + READ * Q, mask=known_QH, other=0.0), 0, reverse=True)
    ddt_QH = tl.load(vectors + PAIRED * Q, mask=known_QH, other=0.0)
    ddt_QH += tl.load(vectors + WRITTEN * Q, mask=known_QH, other=0.0)
    ddt_QH += tl.load(A_H + head, mask=head < H, other=0.0)[None, :] * dlog_QH
    tl.store(ddt_BSH + scalars, ddt_QH, mask=inside_QH)
    share = (row * tl.num_programs(0) + chunk) * H + head
    tl.store(dA_BZH + share, tl.sum(dlog_QH * dt_QH, 0), mask=head < H)
    skipped_QH = tl.load(vectors + SKIPPED * Q, mask=known_QH, other=0.0)
    tl.store(dD_BZH + share, tl.sum(skipped_QH, 0), mask=head < H)
