"""What the GPU at hand can do at best: the ceilings that floors are made of."""

from typing import NamedTuple

import torch
from triton.testing import do_bench

from framework.bench.kernels.case import Work


class Ceilings(NamedTuple):
    """flops_per_second: of a large bfloat16 product. bytes_per_second: of a large copy, read and written.
    exponentials_per_second: of all multiprocessors' special function units, by their clock."""

    flops_per_second: float
    bytes_per_second: float
    exponentials_per_second: float

    def seconds(self, work: tuple[Work, ...]) -> float:
        """One kernel after another, each at its own ceiling."""
        return sum(part.seconds(*self) for part in work)


EXPONENTIALS = 16
"""A clock of a multiprocessor of sm_90 (CUDA C++ Programming Guide, arithmetic instructions)."""

H100 = Ceilings(790e12, 3.0e12, EXPONENTIALS * 132 * 1.755e9)
"""What an H100 with 80 GB reaches, for floors where there is none to measure."""


def measure() -> Ceilings:
    """Of the current GPU; takes a second."""
    left, right = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    product = do_bench(lambda: left @ right, rep=200, return_mode="median") / 1e3
    source = torch.empty(2**30, device="cuda", dtype=torch.uint8)
    target = torch.empty_like(source)
    copy = do_bench(lambda: target.copy_(source), rep=200, return_mode="median") / 1e3
    gpu = torch.cuda.get_device_properties(0)
    exponentials = EXPONENTIALS * gpu.multi_processor_count * 1e3 * gpu.clock_rate
    return Ceilings(2 * 8192**3 / product, 2 * source.numel() / copy, exponentials)
