"""The plain dispatch: each row travels on its own.

Shapes: T tokens of this rank, D model width, E experts, L experts of one rank, R ranks, M routed rows of this rank
(sorted by expert), N rows that this rank receives.
"""

import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh

from kernels.moe.rows import gather_rows, sum_rows
from parallel.collectives import all_to_all, exchange
from parallel.dispatch.rows import Assignment, ExpertFunction, order_by_expert
from parallel.dispatch.traffic import bytes_to_others


class AllToAllDispatcher:
    """Rank r of the mesh holds the r-th of R equal runs of the experts.

    Calling it is collective over the mesh, for the backward too: a rank without tokens, or whose experts get none,
    takes part with zero rows. `bytes_sent` is of the last call, as `bytes_to_others` counts.
    """

    def __init__(self, mesh: DeviceMesh) -> None:
        self.group, self.rank, self.num_ranks = mesh.get_group(), mesh.get_local_rank(), mesh.size()
        self.bytes_sent = 0

    def __call__(self, x_TD: Tensor, assignment: Assignment, experts: ExpertFunction) -> Tensor:
        """y_TD in the dtype of x_TD: each token's experts' outputs, weighted by their gates and summed in float32.

        experts: maps x_ND and an assignment of its rows to this rank's experts to y_ND.
        """
        sent_RL = assignment.counts_E.view(self.num_ranks, -1)
        received_RL = exchange(sent_RL, None, None, self.group)
        sent, received = torch.stack([sent_RL.sum(1), received_RL.sum(1)]).tolist()
        self.bytes_sent = bytes_to_others(x_TD, sent, received, self.rank)

        x_ND = all_to_all(gather_rows(x_TD, assignment.token_M, assignment.rows), received, sent, self.group)
        # Each received row is a token of its own. Experts gather their rows through token_M, so that no sorted copy is
        # made; gates apply where rows return.
        local = type(assignment)(
            token_M=order_by_expert(received_RL, len(x_ND)),
            gate_M=assignment.gate_M.new_ones(len(x_ND)),
            counts_E=received_RL.sum(0),
        )
        y_MD = all_to_all(experts(x_ND, local), sent, received, self.group)
        return combine(y_MD, assignment, len(x_TD))


def combine(y_MD: Tensor, assignment: Assignment, num_tokens: int) -> Tensor:
    """y_TD = sum over the rows of each token of gate times output, both in float32 at least."""
    return sum_rows(y_MD, assignment.token_M, num_tokens, assignment.rows, assignment.gate_M)
