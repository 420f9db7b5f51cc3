"""Carrying tokens to the ranks that hold their experts and back, by portable all-to-all.

Shapes: T tokens of this rank, D model width, E experts, L experts of one rank, R ranks, M routed rows of this rank
(sorted by expert), N rows that this rank receives.
"""

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh

from parallel.collectives import all_to_all, exchange


class Assignment(Protocol):
    """Row m sends token token_M[m] to its expert; rows are sorted by expert, counts_E of them each.

    The expert's output times gate_M[m] is added to the token's. Built by keyword from these three.
    """

    token_M: Tensor
    gate_M: Tensor
    counts_E: Tensor


class AllToAllDispatcher:
    """Rank r of the mesh holds the r-th of R equal runs of the experts.

    Calling it is collective over the mesh, for the backward too: a rank without tokens, or whose experts get none,
    takes part with zero rows.
    """

    def __init__(self, mesh: DeviceMesh) -> None:
        self.group = mesh.get_group()
        self.num_ranks = mesh.size()

    def __call__(self, x_TD: Tensor, assignment: Assignment, experts: Callable[[Tensor, Assignment], Tensor]) -> Tensor:
        """y_TD in the dtype of x_TD: each token's experts' outputs, weighted by their gates and summed in float32.

        experts: maps x_ND and an assignment of its rows to this rank's experts to y_ND.
        """
        sent_RL = assignment.counts_E.view(self.num_ranks, -1)
        received_RL = exchange(sent_RL, None, None, self.group)
        sent, received = torch.stack([sent_RL.sum(1), received_RL.sum(1)]).tolist()

        rows_MD = x_TD.index_select(0, assignment.token_M)
        x_ND = all_to_all(rows_MD, received, sent, self.group)
        y_ND = experts(x_ND, self._local_assignment(type(assignment), received_RL, sum(received), assignment.gate_M))
        y_MD = all_to_all(y_ND, sent, received, self.group)
        return combine(y_MD, assignment, x_TD)

    def _local_assignment(self, build: Callable, received_RL: Tensor, num_rows: int, like: Tensor) -> Assignment:
        """The received rows, which lie rank by rank, in the order of this rank's experts; each is a token of its own.

        Experts gather their rows through token_M, so that no sorted copy is made; the gates apply where rows return.
        """
        counts_LR = received_RL.T
        num_before_RL = (received_RL.flatten().cumsum(0) - received_RL.flatten()).view_as(received_RL)
        num_before_sorted = counts_LR.flatten().cumsum(0) - counts_LR.flatten()
        # Rows of one rank for one expert lie together: each such run is moved as a whole.
        shift_N = (num_before_RL.T.flatten() - num_before_sorted).repeat_interleave(
            counts_LR.flatten(), output_size=num_rows
        )
        return build(
            token_M=torch.arange(num_rows, device=shift_N.device) + shift_N,
            gate_M=like.new_ones(num_rows),
            counts_E=received_RL.sum(0),
        )


def combine(y_MD: Tensor, assignment: Assignment, x_TD: Tensor) -> Tensor:
    """y_TD = sum over the rows of each token of gate times output, accumulated in float32 at least."""
    precise = torch.promote_types(x_TD.dtype, torch.float32)
    weighted_MD = y_MD.to(precise) * assignment.gate_M.to(precise)[:, None]
    y_TD = torch.zeros(x_TD.shape, dtype=precise, device=x_TD.device)
    return y_TD.index_add(0, assignment.token_M, weighted_MD).to(x_TD.dtype)
