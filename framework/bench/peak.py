"""What the device can do at most, as measured here: the rate of one large matrix product."""

import time
from collections.abc import Callable

import torch

SIZE = {"cpu": 2048, "cuda": 8192}
REPEATS = 8


def peak_flops_per_second(device: torch.device, dtype: torch.dtype) -> float:
    """Best of several products of two square matrices, 2 * n^3 operations each, with the threads that torch has now."""
    size = SIZE[device.type]
    left, right = torch.randn(2, size, size, device=device, dtype=dtype).unbind()
    return max(2 * size**3 / seconds_of(lambda: left @ right, device) for _ in range(REPEATS))


def seconds_of(work: Callable[[], object], device: torch.device) -> float:
    """How long the work takes, until the device has done it."""
    _synchronize(device)
    begin = time.perf_counter()
    work()
    _synchronize(device)
    return time.perf_counter() - begin


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
