"""The deduplicated dispatch: a token crosses to a rank once, however many of its experts live there.

Where each of T tokens chooses K of E experts evenly, a rank sends T * (R - 1) * (1 - C(E - E/R, K) / C(E, K)) rows to
the others in place of T * (R - 1) / R * K, and as many come back: with many small experts a fraction.

Shapes: T tokens of this rank, D model width, E experts, L experts of one rank, R ranks, M routed rows of this rank
(sorted by expert), N rows that this rank receives, U copies of tokens that this rank sends (a token has one for each
rank that it visits), V copies that it receives.
"""

import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh

from kernels.backend import runs_triton
from kernels.moe.rows import gather_rows, rows_of_tokens, sum_rows
from parallel.collectives import all_to_all, exchange
from parallel.dispatch.rows import Assignment, ExpertFunction, order_by_expert
from parallel.dispatch.traffic import bytes_to_others


class DeduplicatedDispatcher:
    """Rank r of the mesh holds the r-th of R equal runs of the experts.

    The copy of a token travels with its gates; outputs of one rank's experts are weighted and summed there, and one row
    returns. In the backward one gradient travels each way for each copy, and one number back for each gate.

    Calling it is collective over the mesh, for the backward too: a rank without tokens, or whose experts get none,
    takes part with zero rows. `bytes_sent` is of the last call, as `bytes_to_others` counts. Beside the copies travel
    each row's gate and its copy's number (4 bytes), which are not counted.
    """

    def __init__(self, mesh: DeviceMesh) -> None:
        self.group, self.rank, self.num_ranks = mesh.get_group(), mesh.get_local_rank(), mesh.size()
        self.bytes_sent = 0

    def __call__(self, x_TD: Tensor, assignment: Assignment, experts: ExpertFunction) -> Tensor:
        """y_TD in the dtype of x_TD: each token's experts' outputs, weighted by their gates.

        experts: maps x_VD and an assignment of its tokens to this rank's experts to y_VD in the same dtype, the
        weighted sum over each token's rows. What the ranks return is summed in float32 at least.
        """
        sent_RL = assignment.counts_E.view(self.num_ranks, -1)
        copy_M, copies_sent_R = number_copies(assignment.token_M, sent_RL.sum(1), len(x_TD))
        numbers = exchange(torch.cat([sent_RL, copies_sent_R[:, None]], 1), None, None, self.group)
        received_RL, copies_received_R = numbers[:, :-1], numbers[:, -1]
        rows_sent, rows_received, sent, received = torch.stack(
            [sent_RL.sum(1), received_RL.sum(1), copies_sent_R, copies_received_R]
        ).tolist()
        self.bytes_sent = bytes_to_others(x_TD, sent, received, self.rank)

        token_U = copy_M.new_empty(sum(sent)).scatter_(0, copy_M, assignment.token_M)
        copies = rows_of_tokens(token_U, len(x_TD)) if runs_triton("auto", x_TD) else None
        x_VD = all_to_all(gather_rows(x_TD, token_U, copies), received, sent, self.group)
        gate_N = all_to_all(assignment.gate_M, rows_received, rows_sent, self.group)
        place_M = copy_M - _repeated(_starts(copies_sent_R), sent_RL.sum(1), len(copy_M))
        place_N = exchange(place_M.to(torch.int32), rows_received, rows_sent, self.group)

        copy_N = place_N + _repeated(_starts(copies_received_R), received_RL.sum(1), len(place_N))
        order_N = order_by_expert(received_RL, len(place_N))
        local = type(assignment)(
            token_M=copy_N.index_select(0, order_N),
            gate_M=gate_N.index_select(0, order_N),
            counts_E=received_RL.sum(0),
        )
        y_UD = all_to_all(experts(x_VD, local), sent, received, self.group)
        return sum_rows(y_UD, token_U, len(x_TD), copies)


def number_copies(token_M: Tensor, rows_R: Tensor, num_tokens: int) -> tuple[Tensor, Tensor]:
    """Number the copies of tokens that ranks get, rank by rank and in each by token.

    token_M (int64): the tokens of rows_R rows for each rank, in the order of ranks. Returns copy_M (int64), which copy
    each row works on, and how many each rank gets: int64 [R].
    """
    rank_M = _repeated(torch.arange(len(rows_R), device=rows_R.device), rows_R, len(token_M))
    pair_M = rank_M * num_tokens + token_M
    is_sent = rows_R.new_zeros(len(rows_R) * num_tokens).index_fill_(0, pair_M, 1)
    return (is_sent.cumsum(0) - 1).index_select(0, pair_M), is_sent.view(len(rows_R), num_tokens).sum(1)


def _starts(counts_R: Tensor) -> Tensor:
    return counts_R.cumsum(0) - counts_R


def _repeated(values_R: Tensor, counts_R: Tensor, total: int) -> Tensor:
    return values_R.repeat_interleave(counts_R, output_size=total)
