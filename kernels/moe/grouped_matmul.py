"""Products of runs of rows, each run with the matrix of its expert.

M rows, sorted by expert; E experts; A and B widths.
"""

from collections.abc import Iterator
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

# On a CPU a block's temporaries then stay in cache from one product to the next.
BLOCK_ROWS = 1024


class ExpertBlock:
    """Neighbouring experts and their rows: `experts` and `rows` slice the whole; matrices are given whole.

    counts_E: int64, rows of each expert of the block, which may be zero. On CUDA products are PyTorch's grouped_mm
    where it takes them. Else, as on the CPU, they are one product an expert, written to its place.
    """

    def __init__(self, experts: slice, rows: slice, counts_E: Tensor) -> None:
        self.experts, self.rows, self.counts_E = experts, rows, counts_E
        self.on_cpu = counts_E.device.type == "cpu"

    @cached_property
    def counts(self) -> list[int]:
        """counts_E as numbers; a GPU must have come this far to tell them."""
        return self.counts_E.tolist()

    @cached_property
    def ends_E(self) -> Tensor:
        return self.counts_E.cumsum(0, dtype=torch.int32)

    def multiply(self, rows_MA: Tensor, matrix_EAB: Tensor) -> Tensor:
        """Each of the block's rows times its expert's matrix: [M, B]."""
        matrix_EAB = matrix_EAB[self.experts]
        if self._is_grouped(*matrix_EAB.shape[1:], rows_MA.dtype):
            return F.grouped_mm(rows_MA, matrix_EAB, offs=self.ends_E)
        out_MB = rows_MA.new_empty(rows_MA.shape[0], matrix_EAB.shape[2])
        for rows, matrix, out in self._runs(rows_MA, matrix_EAB, out_MB):
            torch.mm(rows, matrix, out=out)
        return out_MB

    def add_multiply(self, out_MB: Tensor, rows_MA: Tensor, matrix_EAB: Tensor) -> None:
        """Add what `multiply` gives to out_MB."""
        if self._is_grouped(*matrix_EAB.shape[1:], rows_MA.dtype):
            out_MB += self.multiply(rows_MA, matrix_EAB)
            return
        for rows, matrix, out in self._runs(rows_MA, matrix_EAB[self.experts], out_MB):
            out.addmm_(rows, matrix)

    def outer(self, out_EAB: Tensor, rows_MA: Tensor, rows_MB: Tensor) -> None:
        """Write, for each of the block's experts, the sum over its rows of a b^T; exactly zero where it has none."""
        out_EAB = out_EAB[self.experts]
        if self._is_grouped(*out_EAB.shape[1:], rows_MA.dtype):
            product_EAB = F.grouped_mm(rows_MA.t(), rows_MB, offs=self.ends_E)
            # On Blackwell it leaves what memory held where an expert has no rows (pytorch issue 172439).
            out_EAB.copy_(product_EAB.masked_fill_((self.counts_E == 0)[:, None, None], 0))
            return
        for left, out, right in self._runs(rows_MA, out_EAB, rows_MB):
            torch.mm(left.t(), right, out=out)

    def _is_grouped(self, width: int, other: int, dtype: torch.dtype) -> bool:
        """grouped_mm wants rows of whole 16 bytes, and has no float64."""
        aligned = width * dtype.itemsize % 16 == 0 and other * dtype.itemsize % 16 == 0
        return not self.on_cpu and aligned and dtype != torch.float64

    def _runs(self, rows_MA: Tensor, per_expert_EAB: Tensor, rows_MB: Tensor) -> zip:
        return zip(rows_MA.split(self.counts), per_expert_EAB, rows_MB.split(self.counts), strict=True)


def expert_blocks(counts_E: Tensor) -> Iterator[ExpertBlock]:
    """All experts in order, counts_E rows (int64) each: on the CPU in blocks of about BLOCK_ROWS rows, else in one."""
    if counts_E.device.type != "cpu":
        yield ExpertBlock(slice(None), slice(None), counts_E)
        return
    first_expert, first_row, num_rows = 0, 0, 0
    for expert, count in enumerate(counts_E.tolist(), start=1):
        num_rows += count
        if num_rows >= BLOCK_ROWS or expert == len(counts_E):
            experts, rows = slice(first_expert, expert), slice(first_row, first_row + num_rows)
            yield ExpertBlock(experts, rows, counts_E[experts])
            first_expert, first_row, num_rows = expert, rows.stop, 0
