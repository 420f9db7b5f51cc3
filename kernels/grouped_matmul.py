"""Products of runs of rows, each run with a matrix of its own.

M rows, sorted by expert; E experts; A and B widths. In a block both count the block's alone.
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

# On a CPU the temporaries of a block then stay in cache from one product to the next.
BLOCK_ROWS = 1024


class ExpertBlock:
    """Neighbouring experts with their rows: `experts` and `rows` are their slices of all.

    counts_E: int64, rows of each expert of the block; may be zero. On CUDA products are PyTorch's grouped_mm, which
    wants A and B to be multiples of 16 bytes. On the CPU they are one product an expert, written straight to its place.
    """

    def __init__(self, experts: slice, rows: slice, counts_E: Tensor) -> None:
        self.experts, self.rows = experts, rows
        self.on_cpu = counts_E.device.type == "cpu"
        self.counts = counts_E.tolist() if self.on_cpu else None
        self.ends_E = None if self.on_cpu else counts_E.cumsum(0, dtype=torch.int32)

    def multiply(self, rows_MA: Tensor, matrix_EAB: Tensor) -> Tensor:
        """Every row times its expert's matrix: [M, B]."""
        if not self.on_cpu:
            return F.grouped_mm(rows_MA, matrix_EAB, offs=self.ends_E)
        out_MB = rows_MA.new_empty(rows_MA.shape[0], matrix_EAB.shape[2])
        for rows, matrix, out in self._runs(rows_MA, matrix_EAB, out_MB):
            torch.mm(rows, matrix, out=out)
        return out_MB

    def add_multiply(self, out_MB: Tensor, rows_MA: Tensor, matrix_EAB: Tensor) -> Tensor:
        """`multiply`, added to out_MB in place."""
        if not self.on_cpu:
            return out_MB.add_(self.multiply(rows_MA, matrix_EAB))
        for rows, matrix, out in self._runs(rows_MA, matrix_EAB, out_MB):
            out.addmm_(rows, matrix)
        return out_MB

    def outer(self, out_EAB: Tensor, rows_MA: Tensor, rows_MB: Tensor) -> None:
        """Per expert, the sum over its rows of a b^T, into out_EAB; exactly zero for an expert without rows."""
        if not self.on_cpu:
            out_EAB.copy_(F.grouped_mm(rows_MA.t(), rows_MB, offs=self.ends_E))
            return
        for left, out, right in self._runs(rows_MA, out_EAB, rows_MB):
            torch.mm(left.t(), right, out=out)

    def _runs(self, rows_MA: Tensor, per_expert_EAB: Tensor, rows_MB: Tensor) -> zip:
        return zip(rows_MA.split(self.counts), per_expert_EAB, rows_MB.split(self.counts), strict=True)


def expert_blocks(counts_E: Tensor) -> Iterator[ExpertBlock]:
    """All experts in order: in blocks of about BLOCK_ROWS rows on the CPU, else in one."""
    if counts_E.device.type != "cpu":
        yield ExpertBlock(slice(None), slice(None), counts_E)
        return
    num_experts, first_expert, first_row, num_rows = len(counts_E), 0, 0, 0
    for expert, count in enumerate(counts_E.tolist(), start=1):
        num_rows += count
        if num_rows >= BLOCK_ROWS or expert == num_experts:
            experts, rows = slice(first_expert, expert), slice(first_row, first_row + num_rows)
            yield ExpertBlock(experts, rows, counts_E[experts])
            first_expert, first_row, num_rows = expert, first_row + num_rows, 0
