"""Embedding and cross entropy where each rank holds part of the vocabulary.

B batch, S sequence, T tokens, D model width, V vocabulary, L rows of it on this rank, C tokens of a chunk.
"""

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from kernels.cross_entropy import in_chunks
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

    def cross_entropy(self, x_TD: Tensor, weight_LD: Tensor, targets_T: Tensor, logit_scale: float = 1.0) -> Tensor:
        """As `kernels.linear_cross_entropy` of the whole weight: a scalar, the same on every rank, -100 left out.

        x_TD and targets_T are the same on every rank. The gradient of x is this rank's part, to be summed over ranks.
        Softmax's maximum, and then its sum and the target's logit together, are reduced for each chunk of tokens.
        """
        return in_chunks(x_TD, weight_LD, targets_T, logit_scale, self._chunk_loss, self.chunk_rows)

    def gather_logits(self, logits_BSL: Tensor) -> Tensor:
        """[B, S, V] from every rank's [B, S, L]. Backward: gradients are summed over ranks, each takes its rows."""
        missing = self.chunk_rows - self.num_rows
        return all_gather(F.pad(logits_BSL, (0, missing)), 2, self.group)[..., : self.vocab_size]

    def _chunk_loss(self, logits_CL: Tensor, target_C: Tensor) -> tuple[Tensor, Tensor]:
        """`kernels.cross_entropy.chunk_cross_entropy`, with the softmax over every rank's logits."""
        index_C, here_C = self._locate(target_C)
        index_C1, here_C = index_C[:, None], here_C.to(logits_CL.dtype)
        logits_CL -= all_max(logits_CL.amax(1, keepdim=True), self.group)
        own_C = logits_CL.gather(1, index_C1)[:, 0] * here_C
        sum_C, target_logit_C = all_sum(torch.stack([logits_CL.exp_().sum(1), own_C]), self.group)
        dlogits_CL = logits_CL.div_(sum_C[:, None]).scatter_add_(1, index_C1, -here_C[:, None])
        return sum_C.log() - target_logit_C, dlogits_CL

    def _locate(self, token: Tensor) -> tuple[Tensor, Tensor]:
        """The row of each token here, 0 for those of other ranks and for none, and whether it is here."""
        index = token - self.start
        here = (index >= 0) & (index < self.num_rows)
        return index.masked_fill(~here, 0), here
