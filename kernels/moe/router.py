"""From a router's logits to each token's experts and their gates, and what keeps loads even.

B batch, S sequence, E experts, K choices per token, P programs.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from kernels.backend import runs_triton
from kernels.language import INTERPRETING, narrow, tl, triton, widen
from kernels.moe.sort import count_rows
from kernels.operator import operator

SCORINGS = ("softmax_topk", "topk_softmax", "sigmoid")

SHARE = 32
"""Tokens of a program, all of one sequence, whose loads and probabilities it sums."""

MOST_ROUNDS = 8
"""Of a search for the largest, one at a time; more choices than that are sorted out together."""

SMALLEST = 1e-20
"""Added to sums of scores before they divide: sigmoids may all underflow to zero."""

_SMALLEST = tl.constexpr(SMALLEST)


class Routed(NamedTuple):
    """What `route` decides, and sums over the tokens of each sequence.

    index_BSK: int64, the experts of each token, those of highest score first. gate_BSK: float32 at least, their
    weights. rows_BE: int64, how often each expert was chosen. probability_BE: sum of scores, divided by their sum over
    experts. square_B: sum of logsumexp(logits)^2. Gates, probabilities and squares have gradients.
    """

    index_BSK: Tensor
    gate_BSK: Tensor
    rows_BE: Tensor
    probability_BE: Tensor
    square_B: Tensor


def route(
    logits_BSE: Tensor, top_k: int, scoring: str, normalize: bool, bias_E: Tensor | None = None, backend: str = "auto"
) -> Routed:
    """Each token takes the top_k experts of highest score, plus bias_E where there is one.

    scoring, of SCORINGS. softmax_topk: gates are the chosen scores, a softmax over all experts; sigmoid: likewise a
    sigmoid (https://arxiv.org/abs/2412.19437, Eq. 12-16); topk_softmax: a softmax over the chosen. normalize makes
    gates of the first two sum to one. bias_E: float32, seen by the selection only; it has no gradient.

    Without a bias experts are ranked by logits, whose order is that of the scores before these are rounded; with one,
    by score plus bias. The lowest index wins exact ties. Backends rank the same logits, so that they choose alike;
    scores they round differently, so that with a bias they may differ where two stand within a last bit.

    Arithmetic is float32 at least; Triton's is float32, and keeps logits, indices and gates for the backward.
    """
    if scoring not in SCORINGS:
        raise ValueError(f"scoring {scoring!r} is not known; allowed: {', '.join(SCORINGS)}")
    if runs_triton(backend, logits_BSE, bias_E):
        bias_E = None if bias_E is None else bias_E.contiguous()
        return Routed(*_Route.apply(logits_BSE.contiguous(), bias_E, top_k, scoring, normalize))

    logits_BSE = logits_BSE.to(torch.promote_types(logits_BSE.dtype, torch.float32))
    scores_BSE = probability_BSE = logits_BSE.sigmoid() if scoring == "sigmoid" else logits_BSE.softmax(-1)
    if scoring == "sigmoid":
        probability_BSE = scores_BSE / (scores_BSE.sum(-1, keepdim=True) + SMALLEST)
    index_BSK = largest(logits_BSE if bias_E is None else scores_BSE + bias_E, top_k, dim=2)
    if scoring == "topk_softmax":
        gate_BSK = logits_BSE.gather(2, index_BSK).softmax(-1)
    else:
        gate_BSK = scores_BSE.gather(2, index_BSK)
        if normalize:
            gate_BSK = gate_BSK / (gate_BSK.sum(-1, keepdim=True) + SMALLEST)
    rows_BE = count_rows(index_BSK.flatten(1), logits_BSE.shape[2])
    return Routed(index_BSK, gate_BSK, rows_BE, probability_BSE.sum(1), logits_BSE.logsumexp(-1).square().sum(1))


def largest(values: Tensor, num: int, dim: int) -> Tensor:
    """Indices of the `num` largest along dim, largest first; the lowest index wins ties, which topk leaves open."""
    return values.detach().sort(dim=dim, descending=True, stable=True).indices.narrow(dim, 0, num)


class _Route(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: FunctionCtx, logits_BSE: Tensor, bias_E: Tensor | None, top_k: int, scoring: str, normalize: bool
    ) -> tuple[Tensor, ...]:
        routed = _forward(logits_BSE, bias_E, top_k, scoring, normalize)
        index_BSK, gate_BSK, rows_BE, _, _ = routed
        ctx.save_for_backward(logits_BSE, index_BSK, gate_BSK)
        ctx.mark_non_differentiable(index_BSK, rows_BE)
        ctx.scoring, ctx.normalize = scoring, normalize
        return routed

    @staticmethod
    @once_differentiable
    def backward(
        ctx: FunctionCtx, dindex: None, dgate_BSK: Tensor, drows: None, dprobability_BE: Tensor, dsquare_B: Tensor
    ) -> tuple[Tensor | None, ...]:
        upstream = [gradient.contiguous() for gradient in (dgate_BSK, dprobability_BE, dsquare_B)]
        return _backward(*upstream, *ctx.saved_tensors, ctx.scoring, ctx.normalize), None, None, None, None


def _fake_forward(
    logits_BSE: Tensor, bias_E: Tensor | None, top_k: int, scoring: str, normalize: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    batch_size, seq_len, num_experts = logits_BSE.shape
    return (
        logits_BSE.new_empty(batch_size, seq_len, top_k, dtype=torch.int64),
        logits_BSE.new_empty(batch_size, seq_len, top_k, dtype=torch.float32),
        logits_BSE.new_empty(batch_size, num_experts, dtype=torch.int64),
        logits_BSE.new_empty(batch_size, num_experts, dtype=torch.float32),
        logits_BSE.new_empty(batch_size, dtype=torch.float32),
    )


@operator("route", _fake_forward)
def _forward(
    logits_BSE: Tensor, bias_E: Tensor | None, top_k: int, scoring: str, normalize: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    index_BSK, gate_BSK, *_ = _fake_forward(logits_BSE, bias_E, top_k, scoring, normalize)
    batch_size, seq_len, num_experts = logits_BSE.shape
    shares = (batch_size, triton.cdiv(seq_len, SHARE))
    rows_BPE = logits_BSE.new_empty(*shares, num_experts, dtype=torch.int32)
    probability_BPE = logits_BSE.new_empty(*shares, num_experts, dtype=torch.float32)
    square_BP = logits_BSE.new_empty(shares, dtype=torch.float32)
    choose_experts[(shares[0] * shares[1],)](
        logits_BSE, bias_E, index_BSK, gate_BSK, rows_BPE, probability_BPE, square_BP, seq_len,
        **_sizes(num_experts, top_k, scoring, normalize, SHARE),
    )
    return index_BSK, gate_BSK, rows_BPE.sum(1), probability_BPE.sum(1), square_BP.sum(1)


def _fake_backward(
    dgate_BSK: Tensor, dprobability_BE: Tensor, dsquare_B: Tensor, logits_BSE: Tensor, index_BSK: Tensor,
    gate_BSK: Tensor, scoring: str, normalize: bool,
) -> Tensor:
    return torch.empty_like(logits_BSE)


@operator("route_backward", _fake_backward)
def _backward(
    dgate_BSK: Tensor, dprobability_BE: Tensor, dsquare_B: Tensor, logits_BSE: Tensor, index_BSK: Tensor,
    gate_BSK: Tensor, scoring: str, normalize: bool,
) -> Tensor:
    dlogits_BSE = torch.empty_like(logits_BSE)
    batch_size, seq_len, num_experts = logits_BSE.shape
    sizes = _sizes(num_experts, gate_BSK.shape[2], scoring, normalize, share=0)
    choose_experts_backward[(batch_size * triton.cdiv(seq_len, sizes["ROWS"]),)](
        dgate_BSK, dprobability_BE, dsquare_B, logits_BSE, index_BSK, gate_BSK, dlogits_BSE, seq_len, **sizes
    )
    return dlogits_BSE


def _sizes(num_experts: int, top_k: int, scoring: str, normalize: bool, share: int) -> dict[str, int | bool]:
    """A tile of tokens holds about 1024 logits. share: tokens of a program, if it takes several tiles."""
    block = max(16, triton.next_power_of_2(num_experts))
    rows = min(SHARE, max(1, 1024 // block))
    if INTERPRETING and share and top_k > MOST_ROUNDS:
        rows = 2  # the interpreter sorts slowly
    sizes = {
        "E": num_experts, "K": top_k, "SIGMOID": scoring == "sigmoid", "OVER_CHOSEN": scoring == "topk_softmax",
        "NORMALIZE": normalize, "ROWS": rows, "BLOCK_E": block, "BLOCK_K": triton.next_power_of_2(top_k),
    }
    return sizes | {"num_warps": 4} | ({"SHARE": share, "MOST_ROUNDS": MOST_ROUNDS} if share else {})


@triton.jit
def place_of(seq_len, SHARE: tl.constexpr):
    """The sequence of this program, and where in it its SHARE tokens begin."""
    per_sequence = tl.cdiv(seq_len, SHARE)
    return tl.program_id(0) // per_sequence, tl.program_id(0) % per_sequence * SHARE


@triton.jit
def load_logits(logits_TE, token, is_there, E: tl.constexpr, BLOCK_E: tl.constexpr):
    """[ROWS, BLOCK_E] in float32: minus infinity beyond the experts, and 0 for tokens that are not there."""
    expert = tl.arange(0, BLOCK_E)
    mask = is_there[:, None] & (expert < E)[None, :]
    logits = widen(tl.load(logits_TE + token[:, None] * E + expert[None, :], mask=mask, other=0.0))
    return tl.where((expert < E)[None, :], logits, float("-inf"))


@triton.jit
def sortable(x):
    """int32 in the order of float32 x, in which both zeros are one."""
    bits = tl.where(x == 0, 0.0, x).to(tl.int32, bitcast=True)
    return tl.where(bits >= 0, bits, bits ^ 0x7FFFFFFF)


@triton.jit
def choose_experts(
    logits_TE, bias_E, index_TK, gate_TK, rows_PE, probability_PE, square_P, seq_len,
    E: tl.constexpr, K: tl.constexpr, SIGMOID: tl.constexpr, OVER_CHOSEN: tl.constexpr, NORMALIZE: tl.constexpr,
    ROWS: tl.constexpr, SHARE: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_K: tl.constexpr, MOST_ROUNDS: tl.constexpr,
):
    """A program routes some tokens of one sequence, a tile at a time, and sums what is counted of them.

    A choice is found as the largest of 64-bit keys: the rank in the upper half, and below it the expert, counted from
    the last, so that no two are equal.
    """
    sequence, first = place_of(seq_len, SHARE)
    expert, choice = tl.arange(0, BLOCK_E), tl.arange(0, BLOCK_K)
    rows = tl.zeros((BLOCK_E,), tl.int32)
    probabilities = tl.zeros((BLOCK_E,), tl.float32)
    square = 0.0
    for tile in range(tl.cdiv(tl.minimum(seq_len - first, SHARE), ROWS)):
        position = first + tile * ROWS + tl.arange(0, ROWS)
        token, is_there = sequence.to(tl.int64) * seq_len + position, position < seq_len
        logits = load_logits(logits_TE, token, is_there, E, BLOCK_E)
        highest = tl.max(logits, 1)
        exponential = tl.exp(logits - highest[:, None])
        total = tl.sum(exponential, 1)
        logsumexp = highest + tl.log(total)
        square += tl.sum(tl.where(is_there, logsumexp * logsumexp, 0.0), 0)
        if SIGMOID:
            scores = tl.sigmoid(logits)
            probability = scores / (tl.sum(scores, 1) + _SMALLEST)[:, None]
        else:
            scores = exponential / total[:, None]
            probability = scores
        probabilities += tl.sum(tl.where(is_there[:, None], probability, 0.0), 0)

        if bias_E is not None:
            rank = sortable(scores + tl.load(bias_E + expert, mask=expert < E, other=0.0)[None, :])
        else:
            rank = sortable(logits)
        key = (rank.to(tl.int64) << 32) | (BLOCK_E - 1 - expert)[None, :].to(tl.int64)
        key = tl.where((expert < E)[None, :], key, -0x8000000000000000)
        if K <= MOST_ROUNDS:
            left = key
            best = tl.zeros((ROWS, BLOCK_K), tl.int64)
            for round in tl.static_range(K):
                found = tl.max(left, 1)
                best = tl.where((choice == round)[None, :], found[:, None], best)
                left = tl.where(left == found[:, None], -0x8000000000000000, left)
            is_chosen = left != key
        else:
            best = tl.topk(key, BLOCK_K, dim=1)
            last = tl.max(tl.where((choice == K - 1)[None, :], best, -0x8000000000000000), 1)
            is_chosen = (key >= last[:, None]) & (expert < E)[None, :]
        rows += tl.sum((is_chosen & is_there[:, None]).to(tl.int32), 0)

        # Scores of the chosen, made again of their logits: these lie in the cache.
        index = BLOCK_E - 1 - (best & (BLOCK_E - 1))
        mask = is_there[:, None] & (choice < K)[None, :]
        chosen = widen(tl.load(logits_TE + token[:, None] * E + index, mask=mask, other=0.0))
        if OVER_CHOSEN:
            chosen = tl.where((choice < K)[None, :], chosen, float("-inf"))
            gate = tl.exp(chosen - tl.max(chosen, 1)[:, None])
            gate = gate / tl.sum(gate, 1)[:, None]
        else:
            gate = tl.sigmoid(chosen) if SIGMOID else tl.exp(chosen - highest[:, None]) / total[:, None]
            if NORMALIZE:
                gate = gate / (tl.sum(tl.where((choice < K)[None, :], gate, 0.0), 1) + _SMALLEST)[:, None]
        tl.store(index_TK + token[:, None] * K + choice[None, :], index, mask=mask)
        tl.store(gate_TK + token[:, None] * K + choice[None, :], gate, mask=mask)

    share = tl.program_id(0).to(tl.int64) * E + expert
    tl.store(rows_PE + share, rows, mask=expert < E)
    tl.store(probability_PE + share, probabilities, mask=expert < E)
    tl.store(square_P + tl.program_id(0), square)


@triton.jit
def choose_experts_backward(
    dgate_TK, dprobability_BE, dsquare_B, logits_TE, index_TK, gate_TK, dlogits_TE, seq_len,
    E: tl.constexpr, K: tl.constexpr, SIGMOID: tl.constexpr, OVER_CHOSEN: tl.constexpr, NORMALIZE: tl.constexpr,
    ROWS: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_K: tl.constexpr,
):
    """Gradients of all that is made of the logits, in one store.

    With p the softmax of all logits and q a token's scores divided by their sum (p itself, unless scores are sigmoids):
    probabilities give q (d - <q, d>), times 1 - score for sigmoids; logsumexp^2 gives 2 logsumexp p d; chosen expert j
    of gate w gets w_j (d_j - <w, d>) where gates sum to one, else w_j d_j, times 1 - score for sigmoids. Where gates
    are parts of a softmax over all experts, p times the sum of what the chosen get is taken off.
    """
    sequence, first = place_of(seq_len, ROWS)
    position = first + tl.arange(0, ROWS)
    token, is_there = sequence.to(tl.int64) * seq_len + position, position < seq_len
    expert, choice = tl.arange(0, BLOCK_E), tl.arange(0, BLOCK_K)
    logits = load_logits(logits_TE, token, is_there, E, BLOCK_E)
    highest = tl.max(logits, 1)
    exponential = tl.exp(logits - highest[:, None])
    total = tl.sum(exponential, 1)
    p = exponential / total[:, None]
    dlogsumexp = 2 * (highest + tl.log(total)) * tl.load(dsquare_B + sequence)
    dprobability = tl.load(dprobability_BE + sequence.to(tl.int64) * E + expert, mask=expert < E, other=0.0)[None, :]

    mask = is_there[:, None] & (choice < K)[None, :]
    gate = tl.load(gate_TK + token[:, None] * K + choice[None, :], mask=mask, other=0.0)
    dgate = tl.load(dgate_TK + token[:, None] * K + choice[None, :], mask=mask, other=0.0)
    mean = tl.zeros((ROWS,), tl.float32)
    if OVER_CHOSEN or NORMALIZE:
        mean = tl.sum(gate * dgate, 1)

    if SIGMOID:
        scores = tl.sigmoid(logits)
        slope = tl.sigmoid(-logits)
        q = scores / (tl.sum(scores, 1) + _SMALLEST)[:, None]
        dlogits = slope * q * (dprobability - tl.sum(q * dprobability, 1)[:, None]) + p * dlogsumexp[:, None]
    else:
        slope = tl.full((ROWS, BLOCK_E), 1.0, tl.float32)
        off = dlogsumexp - tl.sum(p * dprobability, 1)
        if not OVER_CHOSEN:
            off -= tl.sum(gate * (dgate - mean[:, None]), 1)
        dlogits = p * (dprobability + off[:, None])
    for round in range(K):
        index = tl.load(index_TK + token * K + round, mask=is_there, other=-1)
        weight = tl.load(gate_TK + token * K + round, mask=is_there, other=0.0)
        dchosen = weight * (tl.load(dgate_TK + token * K + round, mask=is_there, other=0.0) - mean)
        dlogits += tl.where(expert[None, :] == index[:, None], dchosen[:, None] * slope, 0.0)
    tl.store(
        dlogits_TE + token[:, None] * E + expert[None, :], narrow(dlogits, dlogits_TE.dtype.element_ty),
        mask=is_there[:, None] & (expert < E)[None, :],
    )
