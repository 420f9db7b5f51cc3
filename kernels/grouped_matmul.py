"""Products of runs of rows, each run with a matrix of its own.

M rows, sorted by expert; E experts; A and B widths.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


class RowGroups:
    """The M rows in E runs of `counts_E` (int64) rows each; a run may be empty.

    On CUDA the products are PyTorch's grouped_mm, which wants A and B to be multiples of 16 bytes. On the CPU they are
    one product an expert, written straight to its place.
    """

    def __init__(self, counts_E: Tensor) -> None:
        self.on_cpu = counts_E.device.type == "cpu"
        if self.on_cpu:
            self.counts = counts_E.tolist()
        else:
            self.ends_E = counts_E.cumsum(0, dtype=torch.int32)

    def multiply(self, rows_MA: Tensor, matrix_EAB: Tensor) -> Tensor:
        """Every row times its expert's matrix: [M, B]."""
        if not self.on_cpu:
            return F.grouped_mm(rows_MA, matrix_EAB, offs=self.ends_E)
        out_MB = rows_MA.new_empty(rows_MA.shape[0], matrix_EAB.shape[2])
        for rows, matrix, out in self._runs(rows_MA, matrix_EAB, out_MB):
            torch.mm(rows, matrix, out=out)
        return out_MB

    def add_multiply(self, out_MB: Tensor, rows_MA: Tensor, matrix_EAB: Tensor) -> Tensor:
        """`multiply` added to out_MB in place."""
        if not self.on_cpu:
            return out_MB.add_(self.multiply(rows_MA, matrix_EAB))
        for rows, matrix, out in self._runs(rows_MA, matrix_EAB, out_MB):
            out.addmm_(rows, matrix)
        return out_MB

    def outer(self, rows_MA: Tensor, rows_MB: Tensor) -> Tensor:
        """Per expert, the sum over its rows of a b^T: [E, A, B], exactly zero for an expert without rows."""
        if not self.on_cpu:
            return F.grouped_mm(rows_MA.t(), rows_MB, offs=self.ends_E)
        out_EAB = rows_MA.new_empty(len(self.counts), rows_MA.shape[1], rows_MB.shape[1])
        for left, out, right in self._runs(rows_MA, out_EAB, rows_MB):
            torch.mm(left.t(), right, out=out)
        return out_EAB

    def _runs(self, rows_MA: Tensor, per_expert_EAB: Tensor, rows_MB: Tensor) -> zip:
        return zip(rows_MA.split(self.counts), per_expert_EAB, rows_MB.split(self.counts), strict=True)
