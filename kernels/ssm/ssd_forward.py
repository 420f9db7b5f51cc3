"""Mamba-2's scan forward, in Triton, in two forms: one kernel that carries the state from chunk to chunk, or one that
writes the states between chunks and one that computes all chunks' outputs at a time.

B batch, S sequence, Z chunks, Q tokens of a chunk, K of them taken at a time, H heads, G groups, P head width,
N state, V vectors of `ssd_decays`.
"""

from kernels.language import dot, narrow, tl, triton, widen
from kernels.ssm.ssd_chunk import DT, ENTERS, KEPT, V, load_rows, pair_decays, store_rows


@triton.jit
def add_outputs(
    y_QP, x_KP, scores_QK, D, decays_VQ, segment_Q, first: tl.constexpr, Q: tl.constexpr, K: tl.constexpr
):
    """y_t + sum_s (score_ts decay_ts dt_s + [t = s] D) x_s, over the K tokens from `first` on; scores are C_t . B_s."""
    row, column = tl.arange(0, Q), first + tl.arange(0, K)
    scores_QK *= pair_decays(decays_VQ, segment_Q, first, Q, K, x_KP.dtype == tl.float32)
    scores_QK *= tl.load(decays_VQ + DT * Q + column)[None, :]
    scores_QK += tl.where(row[:, None] == column[None, :], D, 0.0)
    return dot(narrow(scores_QK, x_KP.dtype), x_KP, y_QP)


@triton.jit
def ssd_carried(
    x_BSHP, decays_BHZVQ, segment_BZQ, B_BSGN, C_BSGN, D_H, state_BHPN, y_BSHP, final_BHPN, seq_len, num_chunks,
    H: tl.constexpr, G: tl.constexpr, P: tl.constexpr, N: tl.constexpr, Q: tl.constexpr, K: tl.constexpr,
    BLOCK_P: tl.constexpr, BLOCK_N: tl.constexpr,
):
    """A program takes a head of a sequence from chunk to chunk, with its state in registers."""
    head, row = tl.program_id(0), tl.program_id(1).to(tl.int64)
    group, state = head // (H // G), (row * H + head) * P * N
    state_PN = tl.zeros((BLOCK_P, BLOCK_N), tl.float32)
    if state_BHPN is not None:
        state_PN = load_rows(state_BHPN + state, N, P, N, BLOCK_P, BLOCK_N)
    for chunk in range(0, num_chunks):
        token, left = row * seq_len + chunk * Q, seq_len - chunk * Q
        decays = decays_BHZVQ + ((row * H + head) * num_chunks + chunk) * (V * Q)
        segment = None if segment_BZQ is None else segment_BZQ + (row * num_chunks + chunk) * Q
        matrix, vectors = (token * H + head) * P, (token * G + group) * N
        C_QN = load_rows(C_BSGN + vectors, G * N, left, N, Q, BLOCK_N)
        y_QP = dot(C_QN, tl.trans(narrow(state_PN, C_QN.dtype)), tl.zeros((Q, BLOCK_P), tl.float32))
        y_QP *= tl.load(decays + ENTERS * Q + tl.arange(0, Q))[:, None]
        state_PN *= tl.load(decays + ENTERS * Q + Q - 1)
        for first in tl.static_range(0, Q, K):
            x_KP = load_rows(x_BSHP + matrix + first * H * P, H * P, left - first, P, K, BLOCK_P)
            B_KN = load_rows(B_BSGN + vectors + first * G * N, G * N, left - first, N, K, BLOCK_N)
            scores_QK = dot(C_QN, tl.trans(B_KN), tl.zeros((Q, K), tl.float32))
            y_QP = add_outputs(y_QP, x_KP, scores_QK, tl.load(D_H + head), decays, segment, first, Q, K)
            kept_KP = narrow(widen(x_KP) * tl.load(decays + KEPT * Q + first + tl.arange(0, K))[:, None], x_KP.dtype)
            state_PN = dot(tl.trans(kept_KP), B_KN, state_PN)
        store_rows(y_BSHP + matrix, H * P, left, P, narrow(y_QP, y_BSHP.dtype.element_ty), Q, BLOCK_P)
    store_rows(final_BHPN + state, N, P, N, state_PN, BLOCK_P, BLOCK_N)


@triton.jit
def ssd_outputs(
    x_BSHP, decays_BHZVQ, segment_BZQ, B_BSGN, C_BSGN, D_H, entering_BZHPN, y_BSHP, seq_len,
    H: tl.constexpr, G: tl.constexpr, P: tl.constexpr, N: tl.constexpr, Q: tl.constexpr, BLOCK_P: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """A program computes the outputs of one head in one chunk, whose entering state it is given, BLOCK_N columns of it
    after another."""
    head, chunk, row = tl.program_id(0) % H, tl.program_id(0) // H, tl.program_id(1).to(tl.int64)
    num_chunks, group = tl.num_programs(0) // H, head // (H // G)
    token, left = row * seq_len + chunk * Q, seq_len - chunk * Q
    decays = decays_BHZVQ + ((row * H + head) * num_chunks + chunk) * (V * Q)
    segment = None if segment_BZQ is None else segment_BZQ + (row * num_chunks + chunk) * Q
    matrix, vectors = (token * H + head) * P, (token * G + group) * N
    state = ((row * num_chunks + chunk) * H + head) * P * N
    y_QP, scores_QQ = tl.zeros((Q, BLOCK_P), tl.float32), tl.zeros((Q, Q), tl.float32)
    for block in range(0, N, BLOCK_N):
        C_QN = load_rows(C_BSGN + vectors + block, G * N, left, N - block, Q, BLOCK_N)
        B_QN = load_rows(B_BSGN + vectors + block, G * N, left, N - block, Q, BLOCK_N)
        state_PN = load_rows(entering_BZHPN + state + block, N, P, N - block, BLOCK_P, BLOCK_N)
        y_QP = dot(C_QN, tl.trans(state_PN), y_QP)
        scores_QQ = dot(C_QN, tl.trans(B_QN), scores_QQ)
    y_QP *= tl.load(decays + ENTERS * Q + tl.arange(0, Q))[:, None]
    x_QP = load_rows(x_BSHP + matrix, H * P, left, P, Q, BLOCK_P)
    y_QP = add_outputs(y_QP, x_QP, scores_QQ, tl.load(D_H + head), decays, segment, 0, Q, Q)
    store_rows(y_BSHP + matrix, H * P, left, P, narrow(y_QP, y_BSHP.dtype.element_ty), Q, BLOCK_P)


@triton.jit
def ssd_states(
    rows_BSHP, decays_BHZVQ, columns_BSGN, state_BHPN, states_BZHPN, last_BHPN, seq_len, num_chunks,
    H: tl.constexpr, G: tl.constexpr, P: tl.constexpr, N: tl.constexpr, Q: tl.constexpr, BLOCK_P: tl.constexpr,
    BLOCK_N: tl.constexpr, REVERSE: tl.constexpr,
):
    """States between chunks, by heads and blocks of N: those that enter each chunk, of rows x and columns B.

    REVERSE: gradients of the states that leave each chunk, of rows dy and columns C: the recurrence
    g = decay g' + sum_t decay_t dy_t C_t^T from the last chunk to the first. state_BHPN is what it starts from, zeros
    where None, last_BHPN what it ends with.
    """
    head, row, block = tl.program_id(0), tl.program_id(1).to(tl.int64), tl.program_id(2) * BLOCK_N
    group, state = head // (H // G), (row * H + head) * P * N + block
    state_PN = tl.zeros((BLOCK_P, BLOCK_N), tl.float32)
    if state_BHPN is not None:
        state_PN = load_rows(state_BHPN + state, N, P, N - block, BLOCK_P, BLOCK_N)
    for step in range(0, num_chunks):
        chunk = num_chunks - 1 - step if REVERSE else step
        token, left = row * seq_len + chunk * Q, seq_len - chunk * Q
        decays = decays_BHZVQ + ((row * H + head) * num_chunks + chunk) * (V * Q)
        weight_Q = tl.load(decays + (ENTERS if REVERSE else KEPT) * Q + tl.arange(0, Q))
        rows_QP = load_rows(rows_BSHP + (token * H + head) * P, H * P, left, P, Q, BLOCK_P)
        columns_QN = load_rows(columns_BSGN + (token * G + group) * N + block, G * N, left, N - block, Q, BLOCK_N)
        place = ((row * num_chunks + chunk) * H + head) * P * N + block
        passed_PN = narrow(state_PN, states_BZHPN.dtype.element_ty)
        store_rows(states_BZHPN + place, N, P, N - block, passed_PN, BLOCK_P, BLOCK_N)
        weighted_QP = narrow(widen(rows_QP) * weight_Q[:, None], rows_QP.dtype)
        state_PN = dot(tl.trans(weighted_QP), columns_QN, state_PN * tl.load(decays + ENTERS * Q + Q - 1))
    store_rows(last_BHPN + state, N, P, N - block, state_PN, BLOCK_P, BLOCK_N)
