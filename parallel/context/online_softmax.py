"""Softmax attention to keys that come in blocks, and its gradient recomputed from the log-sum-exp.

B batch, S queries, L keys of a block, G key and value heads, J query heads of each, P head width. All tensors have
the arithmetic's dtype, float32 at least; queries come with the scale in them.
"""

from collections.abc import Iterable

import torch
from torch import Tensor

from parallel.context.visibility import Tile


class OnlineSoftmax:
    """Running maximum, sum and weighted values of each query (https://arxiv.org/abs/1805.02867, algorithm 3)."""

    def __init__(self, q_BGJSP: Tensor) -> None:
        self.q_BGJSP = q_BGJSP
        self.values_BGJSP = torch.zeros_like(q_BGJSP)
        self.sum_BGJS1 = q_BGJSP.new_zeros(*q_BGJSP.shape[:-1], 1)
        # Not -inf: a query that sees nothing of a tile would subtract -inf from -inf.
        self.maximum_BGJS1 = torch.full_like(self.sum_BGJS1, torch.finfo(q_BGJSP.dtype).min)

    def add(self, k_BGLP: Tensor, v_BGLP: Tensor, tiles: Iterable[Tile]) -> None:
        """Take in a block of keys and values."""
        for tile in tiles:
            own = (slice(None), slice(None), slice(None), tile.queries)
            scores_BGJQK = scores(self.q_BGJSP[own], k_BGLP[:, :, tile.keys], tile.mask)
            before_BGJQ1 = self.maximum_BGJS1[own].clone()
            maximum_BGJQ1 = torch.maximum(before_BGJQ1, scores_BGJQK.amax(-1, keepdim=True))
            weights_BGJQK = scores_BGJQK.sub_(maximum_BGJQ1).exp_()
            kept_BGJQ1 = (before_BGJQ1 - maximum_BGJQ1).exp()
            self.maximum_BGJS1[own] = maximum_BGJQ1
            self.sum_BGJS1[own] = self.sum_BGJS1[own] * kept_BGJQ1 + weights_BGJQK.sum(-1, keepdim=True)
            added_BGJQP = torch.einsum("bgjqk,bgkp->bgjqp", weights_BGJQK, v_BGLP[:, :, tile.keys])
            self.values_BGJSP[own] = self.values_BGJSP[own] * kept_BGJQ1 + added_BGJQP

    def result(self) -> tuple[Tensor, Tensor]:
        """The attention's output y_BGJSP and the log-sum-exp of each query's scores, [B, G, J, S, 1]."""
        return self.values_BGJSP / self.sum_BGJS1, self.maximum_BGJS1 + self.sum_BGJS1.log()


class AttentionGradient:
    """Gradients of queries, and of each block of keys and values (https://arxiv.org/abs/2205.14135, algorithm 4).

    dy_BGJSP: the output's gradient. logsumexp_BGJS1, y_BGJSP: of the forward. `dq_BGJSP` grows with every block.
    """

    def __init__(self, q_BGJSP: Tensor, y_BGJSP: Tensor, logsumexp_BGJS1: Tensor, dy_BGJSP: Tensor) -> None:
        self.q_BGJSP, self.logsumexp_BGJS1, self.dy_BGJSP = q_BGJSP, logsumexp_BGJS1, dy_BGJSP
        self.mean_BGJS1 = (dy_BGJSP * y_BGJSP).sum(-1, keepdim=True)
        self.dq_BGJSP = torch.zeros_like(q_BGJSP)

    def of_block(self, k_BGLP: Tensor, v_BGLP: Tensor, tiles: Iterable[Tile]) -> tuple[Tensor, Tensor]:
        """What these queries give to a block's keys and values, shaped as they are."""
        dk_BGLP, dv_BGLP = torch.zeros_like(k_BGLP), torch.zeros_like(v_BGLP)
        for tile in tiles:
            own, keys = (slice(None), slice(None), slice(None), tile.queries), (slice(None), slice(None), tile.keys)
            q_BGJQP, dy_BGJQP = self.q_BGJSP[own], self.dy_BGJSP[own]
            weights_BGJQK = scores(q_BGJQP, k_BGLP[keys], tile.mask).sub_(self.logsumexp_BGJS1[own]).exp_()
            dv_BGLP[keys] += torch.einsum("bgjqk,bgjqp->bgkp", weights_BGJQK, dy_BGJQP)
            dweights_BGJQK = torch.einsum("bgjqp,bgkp->bgjqk", dy_BGJQP, v_BGLP[keys])
            dscores_BGJQK = dweights_BGJQK.sub_(self.mean_BGJS1[own]).mul_(weights_BGJQK)
            dk_BGLP[keys] += torch.einsum("bgjqk,bgjqp->bgkp", dscores_BGJQK, q_BGJQP)
            self.dq_BGJSP[own] += torch.einsum("bgjqk,bgkp->bgjqp", dscores_BGJQK, k_BGLP[keys])
        return dk_BGLP, dv_BGLP


def scores(q_BGJQP: Tensor, k_BGKP: Tensor, mask: Tensor | None) -> Tensor:
    """q k^T, and -inf where the mask is False: [B, G, J, Q, K]. The heads of a group share its keys as they lie."""
    scores_BGJQK = torch.einsum("bgjqp,bgkp->bgjqk", q_BGJQP, k_BGKP)
    return scores_BGJQK if mask is None else scores_BGJQK.masked_fill_(~mask, -torch.inf)
