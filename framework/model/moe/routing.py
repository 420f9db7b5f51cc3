"""From the router's logits to the rows that experts work on.

B batch, S sequence, E experts, K choices per token, N tokens that an expert takes of each of R groups.
"""

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from framework.model.moe.assignment import Assignment, assign_choices, assign_chosen, rows_per_expert, within_capacity

if TYPE_CHECKING:
    from framework.recipe.schema import MoE


class Routing(NamedTuple):
    """Where tokens go, and what is counted of it.

    scores_BSE: float, what experts are weighted and balanced by. rows_BE: int64, rows of each sequence that each expert
    was to get, before any were dropped. num_dropped: int64 scalar.
    """

    assignment: Assignment
    scores_BSE: Tensor
    rows_BE: Tensor
    num_dropped: Tensor


def tokens_choose(logits_BSE: Tensor, selection_bias_E: Tensor | None, settings: "MoE", drop: bool) -> Routing:
    """Each token takes the top_k experts of highest score, plus selection_bias_E where there is one.

    softmax_topk: gates are the chosen scores, a softmax over all experts; sigmoid: likewise a sigmoid
    (https://arxiv.org/abs/2412.19437, Eq. 12-16); topk_softmax: a softmax over the chosen. normalize_top_k makes them
    sum to one, before gate_scale. drop: hold experts to their capacity.
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

    _, seq_len, num_experts = logits_BSE.shape
    kept_BSK = within_capacity(index_BSK, num_experts, capacity(settings, seq_len)) if drop else None
    assignment = assign_choices(index_BSK, _scaled(gate_BSK, settings), num_experts, kept_BSK)
    rows_BE = rows_per_expert(index_BSK, num_experts)
    return Routing(assignment, scores_BSE, rows_BE, rows_BE.sum() - assignment.counts_E.sum())


def experts_choose(logits_BSE: Tensor, settings: "MoE") -> Routing:
    """Each expert takes, of every group, as many tokens as its capacity (https://arxiv.org/abs/2202.09368).

    choice_group "sequence": each sequence is a group (R = B); "position": the tokens at one position of all sequences
    of the micro-batch (R = S), as in https://arxiv.org/abs/2402.07871. Gates are a softmax over experts.
    """
    scores_BSE = logits_BSE.softmax(-1)
    batch_size, seq_len, num_experts = scores_BSE.shape
    token_BS = torch.arange(batch_size * seq_len, device=logits_BSE.device).view(batch_size, seq_len)
    by_position = settings.choice_group == "position"
    scores_RGE = scores_BSE.transpose(0, 1) if by_position else scores_BSE
    token_RG = token_BS.t() if by_position else token_BS

    group_size = token_RG.shape[1]
    index_RNE = largest(scores_RGE, min(group_size, capacity(settings, group_size)), dim=1)
    token_RNE = token_RG[:, :, None].expand_as(scores_RGE).gather(1, index_RNE)
    assignment = assign_chosen(token_RNE, _scaled(scores_RGE.gather(1, index_RNE), settings))
    sequence_ME = token_RNE.flatten(0, 1) // seq_len
    rows_BE = torch.zeros(batch_size, num_experts, dtype=torch.int64, device=logits_BSE.device)
    rows_BE.scatter_add_(0, sequence_ME, torch.ones_like(sequence_ME))
    return Routing(assignment, scores_BSE, rows_BE, rows_BE.new_zeros(()))


def capacity(settings: "MoE", num_tokens: int) -> int:
    """Rows that an expert takes of so many tokens: int(capacity_factor * num_tokens * top_k / num_experts).

    Papers count the tokens of a device's micro-batch. Here they are those of a sequence (or of a group that experts
    choose from), so that no result depends on the layout. At least one, lest a lone token find no expert.
    """
    factor = 1.0 if settings.capacity_factor is None else settings.capacity_factor
    return max(1, int(factor * num_tokens * settings.top_k / settings.num_experts))


def largest(values: Tensor, num: int, dim: int) -> Tensor:
    """Indices of the `num` largest along dim, largest first; the lowest index wins ties, which topk leaves open."""
    return values.detach().sort(dim=dim, descending=True, stable=True).indices.narrow(dim, 0, num)


def _scaled(gates: Tensor, settings: "MoE") -> Tensor:
    return gates if settings.gate_scale == 1.0 else gates * settings.gate_scale
