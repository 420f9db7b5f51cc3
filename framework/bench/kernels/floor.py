"""What the GPU at hand can do at best: the ceilings that floors are made of."""

from typing import NamedTuple

import torch
from triton.testing import do_bench

from framework.bench.kernels.case import Work


class Ceilings(NamedTuple):
    """flops_per_second: of a large bfloat16 product. bytes_per_second: of a large copy, read and written."""

    flops_per_second: float
    bytes_per_second: float

    def seconds(self, work: tuple[Work, ...]) -> float:
        """One kernel after another, each at its own ceiling."""
        return sum(part.seconds(*self) for part in work)


H100 = Ceilings(790e12, 3.0e12)
"""What an H100 with 80 GB reaches, for floors where there is none to measure."""


def measure() -> Ceilings:
    """Of the current GPU; takes a second."""
    left, right = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    product = do_bench(lambda: left @ right, rep=200, return_mode="median") / 1e3
    source = torch.empty(2**30, device="cuda", dtype=torch.uint8)
    target = torch.empty_like(source)
    copy = do_bench(lambda: target.copy_(source), rep=200, return_mode="median") / 1e3
    return Ceilings(2 * 8192**3 / product, 2 * source.numel() / copy)
