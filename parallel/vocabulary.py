"""Embedding and cross entropy where each rank holds part of the vocabulary.

B batch, S sequence, T tokens, D model width, V vocabulary, L rows of it on this rank, C tokens of a chunk.
"""

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from kernels.cross_entropy import in_chunks
from kernels.cross_entropy_rows import IGNORED, RowLosses, shard_gradient, shard_statistics
from parallel.collectives import all_gather, all_max, all_sum, reduce_scatter


class VocabularyShard:
    """Rank r of a group holds the r-th chunk of the vocabulary, as `torch.chunk` and DTensor's Shard(0) cut it.

    All chunks have ceil(V / ranks) rows but the last, which has what is left.
    Raises ValueError where nothing is left for a rank.
    """

    def __init__(self, vocab_size: int, group: dist.ProcessGroup) -> None:
        self.vocab_size, self.group, num_ranks = vocab_size, group, group.size()
        self.chunk_rows = -(-vocab_size // num_ranks)
        if self.chunk_rows * (num_ranks - 1) >= vocab_size:
            raise ValueError(f"tp={num_ranks}: the {vocab_size} vocabulary rows fill fewer parts of {self.chunk_rows}")
        self.start = group.rank() * self.chunk_rows
        self.num_rows = min(self.chunk_rows, vocab_size - self.start)

    def look_up(self, tokens_BS: Tensor, weight_LD: Tensor) -> Tensor:
        """weight[token] of this rank's part of the sequence, [B, S / ranks, D].

        tokens_BS: int64, the same on every rank. Raises ValueError where S does not divide by the ranks.
        """
        seq_len, num_ranks = tokens_BS.shape[1], self.group.size()
        if seq_len % num_ranks:
            raise ValueError(f"tp={num_ranks} must divide the sequence of {seq_len} tokens that its ranks share")
        index_BS, here_BS = self._locate(tokens_BS)
        x_BSD = F.embedding(index_BS, weight_LD) * here_BS[..., None]
        return reduce_scatter(x_BSD, 1, self.group)

    def cross_entropy(
        self, x_TD: Tensor, weight_LD: Tensor, targets_T: Tensor, logit_scale: float = 1.0, z_loss_weight: float = 0.0,
        backend: str = "auto",
    ) -> Tensor:
        """As `kernels.linear_cross_entropy` of the whole weight: a scalar, the same on every rank, -100 left out.

        x_TD and targets_T are the same on every rank. The gradient of x is this rank's part, to be summed over ranks.
        Softmax's maximum, and then its sum and the target's logit together, are reduced for each chunk of tokens.
        """
        def row_loss(logits_CL: Tensor, target_C: Tensor, needs_gradient: bool) -> RowLosses:
            return self._row_loss(logits_CL, target_C, needs_gradient, logit_scale, z_loss_weight, backend)

        return in_chunks(x_TD, weight_LD, targets_T, row_loss, self.chunk_rows)

    def gather_logits(self, logits_BSL: Tensor) -> Tensor:
        """[B, S, V] from every rank's [B, S, L]. Backward: gradients are summed over ranks, each takes its rows."""
        missing = self.chunk_rows - self.num_rows
        return all_gather(F.pad(logits_BSL, (0, missing)), 2, self.group)[..., : self.vocab_size]

    def _row_loss(
        self, logits_CL: Tensor, target_C: Tensor, needs_gradient: bool, scale: float, z_loss_weight: float,
        backend: str,
    ) -> RowLosses:
        """`kernels.cross_entropy_rows.cross_entropy_rows`, with the softmax over every rank's logits."""
        own_3C, logits_CL = shard_statistics(logits_CL, target_C, self.start, scale, backend)
        largest_C = all_max(own_3C[0], self.group)
        own_sum_C = own_3C[1] * (own_3C[0] - largest_C).exp_()
        sum_C, target_logit_C = all_sum(torch.stack([own_sum_C, own_3C[2]]), self.group)
        lse_C = largest_C + sum_C.log()
        loss_C = sum_C.log_() - (target_logit_C - largest_C) + z_loss_weight * lse_C.square()
        loss_C.masked_fill_(target_C == IGNORED, 0.0)
        if not needs_gradient:
            return RowLosses(loss_C, logits_CL)
        return RowLosses(
            loss_C,
            *shard_gradient(logits_CL, target_C, self.start, own_3C, lse_C, scale, z_loss_weight, backend),
        )

    def _locate(self, token: Tensor) -> tuple[Tensor, Tensor]:
        """The row of each token here, 0 for those of other ranks and for none, and whether it is here."""
        index = token - self.start
        here = (index >= 0) & (index < self.num_rows)
        return index.masked_fill(~here, 0), here
