"""From the router's logits to the rows that experts work on.

A rank may hold parts of sequences only. What depends on a whole sequence (or a whole batch) is decided on scores or
choices gathered from the other ranks, by each rank alike; gates are made of the scores here, and have a gradient.

B batch, S sequence, E experts, K choices per token; of the tokens on this rank unless they are called whole.
"""

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from framework.model.moe.assignment import Assignment, assign_choices, assign_chosen, within_capacity
from framework.model.moe.parts import Parts, TokenParts
from kernels.moe.router import largest, route

if TYPE_CHECKING:
    from framework.recipe.schema import MoE

UNDIVIDED = TokenParts()


class Routing(NamedTuple):
    """Where the tokens of this rank go, and sums over those of each sequence.

    rows_BE: int64, rows that each expert was to get, before any were dropped. probability_BE: of scores, which experts
    are weighted by, divided by their sum over experts. square_B: of logsumexp(logits)^2. num_dropped: int64 scalar.
    """

    assignment: Assignment
    rows_BE: Tensor
    probability_BE: Tensor
    square_B: Tensor
    num_dropped: Tensor


def tokens_choose(
    logits_BSE: Tensor, selection_bias_E: Tensor | None, settings: "MoE", drop: bool,
    token_parts: TokenParts = UNDIVIDED,
) -> Routing:
    """Each token takes the top_k experts of highest score, plus selection_bias_E where there is one: see `route`.

    drop: hold experts to their capacity in each sequence. Otherwise nothing waits for a GPU.
    """
    routed = route(logits_BSE, settings.top_k, settings.router, settings.normalize_top_k, selection_bias_E)
    kept_BSK = _kept(routed.index_BSK, settings, token_parts.sequence) if drop else None
    gate_BSK = _scaled(routed.gate_BSK, settings)
    assignment = assign_choices(routed.index_BSK, gate_BSK, logits_BSE.shape[2], kept_BSK)
    num_dropped = routed.rows_BE.sum() - assignment.counts_E.sum()
    return Routing(assignment, routed.rows_BE, routed.probability_BE, routed.square_B, num_dropped)


def experts_choose(logits_BSE: Tensor, settings: "MoE", token_parts: TokenParts = UNDIVIDED) -> Routing:
    """Each expert takes, of every group, as many tokens as its capacity (https://arxiv.org/abs/2202.09368).

    choice_group "sequence": each whole sequence is a group; "position": the tokens at one position of all sequences of
    a forward, on all its ranks, as in https://arxiv.org/abs/2402.07871. Gates are a softmax over experts.
    """
    scores_BSE = logits_BSE.softmax(-1)
    parts, dim = (token_parts.sequence, 1) if settings.choice_group == "sequence" else (token_parts.batch, 0)
    whole_BSE = parts.gather(scores_BSE, dim)
    group_size = whole_BSE.shape[dim]
    index = largest(whole_BSE, min(group_size, capacity(settings, group_size)), dim)
    chosen_BSE = parts.own(torch.zeros_like(whole_BSE, dtype=torch.bool).scatter_(dim, index, True), dim)

    assignment = assign_chosen(chosen_BSE.flatten(0, 1), _scaled(scores_BSE, settings).flatten(0, 1))
    square_B = logits_BSE.logsumexp(-1).square().sum(1)
    num_dropped = chosen_BSE.new_zeros((), dtype=torch.int64)
    return Routing(assignment, chosen_BSE.sum(1), scores_BSE.sum(1), square_B, num_dropped)


def capacity(settings: "MoE", num_tokens: int) -> int:
    """Rows that an expert takes of so many tokens: int(capacity_factor * num_tokens * top_k / num_experts).

    Papers count the tokens of a device's micro-batch, so that their results depend on the layout. Here they are those
    of a whole sequence, whichever ranks hold parts of it: no result depends on the layout or on micro-batches. With
    choice_group "position" they are the sequences of one forward over all its ranks: a step that is one forward does
    not depend on the layout, but one that is cut into micro-batches has other, smaller groups, and other results.

    At least one, lest a lone token find no expert.
    """
    factor = 1.0 if settings.capacity_factor is None else settings.capacity_factor
    return max(1, int(factor * num_tokens * settings.top_k / settings.num_experts))


def _kept(index_BSK: Tensor, settings: "MoE", parts: Parts) -> Tensor:
    """bool [B, S, K]: which choices of this rank's tokens experts have room for in the whole sequence."""
    whole_BSK = parts.gather(index_BSK, 1)
    limit = capacity(settings, whole_BSK.shape[1])
    return parts.own(within_capacity(whole_BSK, settings.num_experts, limit), 1)


def _scaled(gates: Tensor, settings: "MoE") -> Tensor:
    return gates if settings.gate_scale == 1.0 else gates * settings.gate_scale
