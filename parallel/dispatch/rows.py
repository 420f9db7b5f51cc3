"""Rows that wait for experts: what dispatchers take, the order experts want, and the sum of what comes back.

Shapes: T tokens, D model width, E experts, L experts of one rank, R ranks, M rows (sorted by expert), N rows received.
"""

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor


class Assignment(Protocol):
    """Row m sends token token_M[m] (int64) to its expert; rows are sorted by expert, counts_E (int64) of them each.

    The expert's output times gate_M[m] is added to the token's. Built by keyword from these three.
    """

    token_M: Tensor
    gate_M: Tensor
    counts_E: Tensor


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


def sum_rows(y_MD: Tensor, token_M: Tensor, like_TD: Tensor) -> Tensor:
    """y_TD of the shape and dtype of like_TD: the sum of each token's rows, accumulated in float32 at least."""
    precise = torch.promote_types(like_TD.dtype, torch.float32)
    y_TD = torch.zeros(like_TD.shape, dtype=precise, device=like_TD.device)
    return y_TD.index_add(0, token_M, y_MD.to(precise)).to(like_TD.dtype)
