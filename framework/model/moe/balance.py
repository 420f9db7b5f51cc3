"""Auxiliary losses and how they enter the gradient.

B batch (sequences), E experts.
"""

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx


class AttachLoss(torch.autograd.Function):
    """Identity on x. The backward of whatever is made of x also runs the scalar loss's own, with gradient one.

    So an auxiliary loss needs no way out of the model, and whatever the main loss is divided by leaves it alone.
    """

    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, loss: Tensor) -> Tensor:
        ctx.one = torch.ones_like(loss)
        return x.view_as(x)

    @staticmethod
    def backward(ctx: FunctionCtx, dx: Tensor) -> tuple[Tensor, Tensor]:
        return dx, ctx.one


def load_balance_loss(probability_BE: Tensor, rows_BE: Tensor, tokens_per_sequence: int) -> Tensor:
    """Sum over sequences of E * sum_e f_e * P_e (https://arxiv.org/abs/2101.03961, Eq. 4-6): a scalar.

    f_e: the share of routed rows that expert e gets, from counts rows_BE of each sequence, or of anything larger (one
    row [1, E], which stands for every sequence). Shares sum to one whatever top_k is, so that even loads give one;
    codes that count rows per token report top_k times this. P_e: mean over the sequence of the token's probability,
    given as the sum over its tokens here; what comes out is their share. tokens_per_sequence counts those of all ranks
    that share a sequence.
    """
    # Where experts choose by position, a sequence may have no row at all.
    share_BE = rows_BE / rows_BE.sum(-1, keepdim=True).clamp(min=1)
    return probability_BE.shape[1] * (share_BE * probability_BE).sum() / tokens_per_sequence


def z_loss(square_B: Tensor, tokens_per_sequence: int) -> Tensor:
    """Sum over sequences of the mean over tokens of logsumexp(logits)^2 (https://arxiv.org/abs/2202.08906, Eq. 5).

    Given its sum over each sequence's tokens here, of which comes their share, as in `load_balance_loss`.
    """
    return square_B.sum() / tokens_per_sequence
