"""From the router's logits to the rows that experts work on.

A rank may hold parts of sequences only. What depends on a whole sequence (or a whole batch) is decided on scores or
choices gathered from the other ranks, by each rank alike; gates are made of the scores here, and have a gradient.

B batch, S sequence, E experts, K choices per token; of the tokens on this rank unless they are called whole.
"""

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from framework.model.moe.assignment import Assignment, assign_choices, assign_chosen, rows_per_expert, within_capacity
from framework.model.moe.parts import Parts, TokenParts

if TYPE_CHECKING:
    from framework.recipe.schema import MoE

UNDIVIDED = TokenParts()


class Routing(NamedTuple):
    """Where the tokens of this rank go, and what is counted of it.

    scores_BSE: float, what experts are weighted and balanced by. rows_BE: int64, rows of each sequence's tokens
    here that each expert was to get, before any were dropped. num_dropped: int64 scalar.
    """

    assignment: Assignment
    scores_BSE: Tensor
    rows_BE: Tensor
    num_dropped: Tensor


def tokens_choose(
    logits_BSE: Tensor, selection_bias_E: Tensor | None, settings: "MoE", drop: bool,
    token_parts: TokenParts = UNDIVIDED,
) -> Routing:
    """Each token takes the top_k experts of highest score, plus selection_bias_E where there is one.

    softmax_topk: gates are the chosen scores, a softmax over all experts; sigmoid: likewise a sigmoid
    (https://arxiv.org/abs/2412.19437, Eq. 12-16); topk_softmax: a softmax over the chosen. normalize_top_k makes them
    sum to one, before gate_scale. drop: hold experts to their capacity in each sequence.
    """
    scores_BSE = logits_BSE.sigmoid() if settings.router == "sigmoid" else logits_BSE.softmax(-1)
    biased_BSE = scores_BSE if selection_bias_E is None else scores_BSE + selection_bias_E
    index_BSK = largest(biased_BSE, settings.top_k, dim=2)
    if settings.router == "topk_softmax":
        gate_BSK = logits_BSE.gather(2, index_BSK).softmax(-1)
    else:
        gate_BSK = scores_BSE.gather(2, index_BSK)
        if settings.normalize_top_k:
            # Sigmoids may all underflow to zero.
            gate_BSK = gate_BSK / (gate_BSK.sum(-1, keepdim=True) + 1e-20)

    num_experts = logits_BSE.shape[2]
    kept_BSK = _kept(index_BSK, settings, token_parts.sequence) if drop else None
    assignment = assign_choices(index_BSK, _scaled(gate_BSK, settings), num_experts, kept_BSK)
    rows_BE = rows_per_expert(index_BSK, num_experts)
    return Routing(assignment, scores_BSE, rows_BE, rows_BE.sum() - assignment.counts_E.sum())


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
    return Routing(assignment, scores_BSE, chosen_BSE.sum(1), chosen_BSE.new_zeros((), dtype=torch.int64))


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


def largest(values: Tensor, num: int, dim: int) -> Tensor:
    """Indices of the `num` largest along dim, largest first; the lowest index wins ties, which topk leaves open."""
    return values.detach().sort(dim=dim, descending=True, stable=True).indices.narrow(dim, 0, num)


def _kept(index_BSK: Tensor, settings: "MoE", parts: Parts) -> Tensor:
    """bool [B, S, K]: which choices of this rank's tokens experts have room for in the whole sequence."""
    whole_BSK = parts.gather(index_BSK, 1)
    limit = capacity(settings, whole_BSK.shape[1])
    return parts.own(within_capacity(whole_BSK, settings.num_experts, limit), 1)


def _scaled(gates: Tensor, settings: "MoE") -> Tensor:
    return gates if settings.gate_scale == 1.0 else gates * settings.gate_scale
