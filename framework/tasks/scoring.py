"""Rows of tokens through a model on all of its ranks: how likely their targets are, and what is likelier.

B rows of a forward, S tokens of a row, N rows in all, T tokens of a forward on this rank, C chosen ones, V vocabulary,
L of it on this rank, D model width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import Tensor, nn

from framework.model import Context
from kernels.cross_entropy import CHUNK_LOGITS
from kernels.cross_entropy_rows import IGNORED
from parallel import MeshSizes
from parallel.collectives import all_sum
from parallel.vocabulary import VocabularyShard

if TYPE_CHECKING:
    from framework.tasks.rows import Row

FEWEST = 8
"""Tokens of a row that a rank of cp holds at least: more than the longest convolution looks back."""
NATS, WRONG, LIKELIEST = range(3)
"""Columns of what a row gets."""
ONE = MeshSizes()

Watch = Callable[[int, int], None]
"""Told of pieces of work: how many more are done, and how many more there are."""


def unwatched(done: int, more: int) -> None:
    """Nobody looks."""


class Scorer:
    """Takes rows through a model. Collective over the world, and every rank makes the same forwards.

    sizes: of the mesh that the model is split over; index: of this rank among those with other rows (`Mesh.batch`).
    batch_size: rows of a forward on one of them, a multiple of pp. run: called in the model's place with its arguments
    (a pipeline's `evaluate`). goes_on: asked after every forward; where it says no, to all ranks after the same one,
    nothing is scored. watch: told how many rows are done, and how many more have come.
    """

    def __init__(
        self, model: nn.Module, seq_len: int, batch_size: int, device: torch.device, sizes: MeshSizes = ONE,
        index: int = 0, run: Callable[[Tensor, Context, Tensor], Tensor] | None = None,
        goes_on: Callable[[], bool] = lambda: True, watch: Watch = unwatched,
    ) -> None:
        assert batch_size % sizes.pp == 0, "a pipeline takes equal micro-batches, one for each rank"
        self.model, self.seq_len, self.batch_size, self.device = model, seq_len, batch_size, device
        self.sizes, self.index, self.run, self.goes_on, self.watch = sizes, index, run or model, goes_on, watch

    @property
    def num_rows(self) -> int:
        """Rows that all ranks together take in one forward."""
        return self.batch_size * self.sizes.batch

    @torch.no_grad()
    def score(self, rows: Sequence[Row]) -> Tensor | None:
        """float64 [N, 3] on the CPU, the same on every rank; None where `goes_on` said no.

        For each row (at most `seq_len` tokens): the negative log-likelihood of its targets in nats, how many of them
        are not the likeliest token, and the sum of the likeliest tokens' numbers (of one target: that token). Rows are
        filled up at their right end, which a causal model does not see. Leaves the model in evaluation mode, and
        weights gathered.
        """
        self.model.eval()
        total_N3 = torch.zeros(len(rows), 3, dtype=torch.float64, device=self.device)
        order = sorted(range(len(rows)), key=lambda number: -len(rows[number].tokens))
        self.watch(0, len(rows))
        for first in range(0, len(order), self.num_rows):
            turn = order[first : first + self.num_rows]
            own = turn[self.index :: self.sizes.batch]
            results_B3 = self._forward([rows[number] for number in own], len(turn), len(rows[turn[0]].tokens))
            if results_B3 is not None:
                total_N3[own] = results_B3[: len(own)]
            self.watch(len(turn), 0)
            if not self.goes_on():
                return None
        if self.sizes.world > 1:
            # All ranks of tp have the same results; what a rank has none of is zero.
            total_N3 = all_sum(total_N3, dist.group.WORLD) / self.sizes.tp
        return total_N3.cpu()

    def _forward(self, own: list[Row], num_rows: int, longest: int) -> Tensor | None:
        """[B, 3] of this rank's rows and of filling; None on ranks without the model's end."""
        share = -(-num_rows // self.sizes.batch)
        size = -(-share // self.sizes.pp) * self.sizes.pp
        length = padded_length(longest, self.seq_len, self.sizes.cp, self.sizes.tp)
        tokens_BS, targets_BS = (tensor.to(self.device) for tensor in fill(own, size, length))
        with recorded(self.model.unembedding, length // self.sizes.cp) as results:
            self.run(tokens_BS, Context(), targets_BS)
        return torch.cat(results) if results else None


def padded_length(longest: int, seq_len: int, cp: int = 1, tp: int = 1) -> int:
    """The smallest of seq_len, seq_len/2, seq_len/4, ... that holds so many tokens and that ranks can split.

    Few lengths: a pipeline's buffers, and compiled blocks, are made once for each.
    """
    assert longest <= seq_len, f"{longest} tokens in sequences of {seq_len}"
    length = seq_len
    while length % 2 == 0 and length // 2 >= longest and length // 2 % (cp * tp) == 0 and length // 2 >= FEWEST * cp:
        length //= 2
    return length


def fill(rows: Sequence[Row], size: int, length: int) -> tuple[Tensor, Tensor]:
    """(tokens, targets), int64 [size, length]: targets at the ends of their rows, -100 where there is none."""
    tokens_BS = torch.zeros(size, length, dtype=torch.int64)
    targets_BS = torch.full((size, length), IGNORED, dtype=torch.int64)
    for number, row in enumerate(rows):
        end = len(row.tokens)
        tokens_BS[number, :end] = torch.tensor(row.tokens)
        targets_BS[number, end - len(row.targets) : end] = torch.tensor(row.targets)
    return tokens_BS, targets_BS


@contextmanager
def recorded(unembedding: nn.Module | None, row_length: int) -> Iterator[list[Tensor]]:
    """Within it a model's cross entropy is worked out row by row: for each of its calls a float64 [B, 3] as `score` has
    it, in the list. row_length: tokens of a row on this rank. None, where a pipeline has the end elsewhere: nothing.

    Only the hidden states with a target meet the vocabulary, and chunk by chunk.
    """
    results: list[Tensor] = []
    if unembedding is None:
        yield results
        return
    original = unembedding.cross_entropy
    shard = getattr(original, "__self__", None)
    gather = shard.gather_logits if isinstance(shard, VocabularyShard) else None

    def record(x_TD: Tensor, weight_LD: Tensor, targets_T: Tensor, logit_scale: float = 1.0) -> Tensor:
        result_T3 = x_TD.new_zeros(len(targets_T), 3, dtype=torch.float64)
        chosen_C = (targets_T != IGNORED).nonzero()[:, 0]
        matrix_LD = weight_LD.to(x_TD.dtype)
        size = max(1, CHUNK_LOGITS.get(x_TD.device.type, CHUNK_LOGITS["cuda"]) // weight_LD.shape[0])
        for chunk_C in chosen_C.split(size):
            logits_CV = logits(x_TD[chunk_C], matrix_LD, logit_scale, gather)
            result_T3[chunk_C] = judge(logits_CV, targets_T[chunk_C])
        results.append(result_T3.view(-1, row_length, 3).sum(1))
        return result_T3[:, NATS].sum().to(torch.promote_types(x_TD.dtype, torch.float32))

    unembedding.cross_entropy = record
    try:
        yield results
    finally:
        unembedding.cross_entropy = original


def logits(
    x_CD: Tensor, matrix_LD: Tensor, scale: float, gather: Callable[[Tensor], Tensor] | None
) -> Tensor:
    """[C, V], float32 at least, as `Unembedding` makes them. gather: of other ranks' parts of a vocabulary."""
    logits_CL = x_CD @ matrix_LD.t()
    whole_CV = logits_CL if gather is None else gather(logits_CL[None])[0]
    return whole_CV.to(torch.promote_types(x_CD.dtype, torch.float32)) * scale


def judge(logits_CV: Tensor, target_C: Tensor) -> Tensor:
    """float64 [C, 3]: nats of a target, whether it is not the likeliest token, and which is; of equals the first."""
    nats_C = -logits_CV.log_softmax(-1).gather(-1, target_C[:, None])[:, 0]
    likeliest_C = logits_CV.argmax(-1)
    return torch.stack([nats_C.double(), (likeliest_C != target_C).double(), likeliest_C.double()], dim=-1)
