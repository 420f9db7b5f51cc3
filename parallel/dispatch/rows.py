"""Rows that wait for experts: what dispatchers take, and the order experts want.

Shapes: E experts, L experts of one rank, R ranks, M rows (sorted by expert), N rows received.
"""

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from kernels.moe.rows import TokenRows


class Assignment(Protocol):
    """Row m sends token token_M[m] (int64) to its expert; rows are sorted by expert, counts_E (int64) of them each.

    The expert's output times gate_M[m] is added to the token's. rows: those of each token, where they are known. Built
    by keyword from the first three.
    """

    token_M: Tensor
    gate_M: Tensor
    counts_E: Tensor
    rows: TokenRows | None


ExpertFunction = Callable[[Tensor, Assignment], Tensor]


def order_by_expert(received_RL: Tensor, num_rows: int) -> Tensor:
    """int64 [N]: which received row comes first, second, ... in the order of this rank's experts.

    Rows lie rank by rank, each rank's sorted by expert: received_RL (int64) of them. num_rows: their number N.
    """
    counts_LR = received_RL.T
    num_before_RL = (received_RL.flatten().cumsum(0) - received_RL.flatten()).view_as(received_RL)
    num_before_sorted = counts_LR.flatten().cumsum(0) - counts_LR.flatten()
    # Rows of one rank for one expert lie together: each such run is moved as a whole.
    shift_N = (num_before_RL.T.flatten() - num_before_sorted).repeat_interleave(
        counts_LR.flatten(), output_size=num_rows
    )
    return torch.arange(num_rows, device=shift_N.device) + shift_N
