"""Which token goes to which expert, as the sorted list of rows that experts and dispatchers take.

B batch, S sequence, T = B * S tokens, E experts, K choices per token, M routed rows.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from kernels.moe.rows import TokenRows, rows_of_choices
from kernels.moe.sort import sort_by_expert


@dataclass(frozen=True)
class Assignment:
    """Row m sends token token_M[m] to its expert, whose output times gate_M[m] is added to that token's output.

    token_M: int64. gate_M: float32, float64 where activations are. counts_E: int64, rows of each expert; rows are
    sorted by expert. A token may have any number of rows, none too. rows: those of each token, where they are known.
    """

    token_M: Tensor
    gate_M: Tensor
    counts_E: Tensor
    rows: TokenRows | None = None


def assign_choices(index_BSK: Tensor, gate_BSK: Tensor, num_experts: int, kept_BSK: Tensor | None = None) -> Assignment:
    """Tokens chose experts (int64). Choices that are not kept (bool) get no row; None: all are, and no host waits."""
    top_k = index_BSK.shape[-1]
    index_M, gate_M = index_BSK.flatten(), gate_BSK.flatten()
    if kept_BSK is None:
        choice_M, place_M, counts_E = sort_by_expert(index_M, num_experts)
        rows = rows_of_choices(place_M, top_k)
    else:
        choice_M = kept_BSK.flatten().nonzero()[:, 0]
        order_M, _, counts_E = sort_by_expert(index_M[choice_M], num_experts)
        choice_M, rows = choice_M[order_M], None
    return Assignment(choice_M // top_k, gate_M.index_select(0, choice_M), counts_E, rows)


def assign_chosen(chosen_TE: Tensor, gate_TE: Tensor) -> Assignment:
    """Experts chose tokens (bool): each expert's rows in the order of tokens."""
    chosen_ET = chosen_TE.t().contiguous()
    row_M = chosen_ET.flatten().nonzero()[:, 0]
    gate_M = gate_TE.t().flatten().index_select(0, row_M)
    return Assignment(row_M % len(chosen_TE), gate_M, chosen_ET.sum(1))


def within_capacity(index_BSK: Tensor, num_experts: int, capacity: int) -> Tensor:
    """bool [B, S, K]: whether a choice is among the first `capacity` of its sequence for its expert.

    All first choices come before all second ones; among equals the earlier position comes first.
    """
    # One queue for each pair of sequence and expert.
    sequence_B = torch.arange(len(index_BSK), device=index_BSK.device)
    queue_BKS = (sequence_B[:, None, None] * num_experts + index_BSK).transpose(1, 2)
    queue_M = queue_BKS.flatten()
    # Triton's sort counts every queue in every block of rows, and these may be very many.
    _, place_M, lengths = sort_by_expert(queue_M, len(index_BSK) * num_experts, backend="torch")
    starts = lengths.cumsum(0) - lengths
    return (place_M - starts[queue_M] < capacity).view_as(queue_BKS).transpose(1, 2)
