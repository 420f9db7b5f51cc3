"""What the device can do at most, as measured here: the rate of one large matrix product."""

import time

import torch

SIZE = {"cpu": 2048, "cuda": 8192}
REPEATS = 8


def peak_flops_per_second(device: torch.device, dtype: torch.dtype) -> float:
    """Best of several products of two square matrices, 2 * n^3 operations each, with the threads that torch has now."""
    size = SIZE[device.type]
    left, right = torch.randn(2, size, size, device=device, dtype=dtype).unbind()
    return max(2 * size**3 / _seconds(lambda: left @ right, device) for _ in range(REPEATS))


def _seconds(work, device: torch.device) -> float:
    synchronize(device)
    begin = time.perf_counter()
    work()
    synchronize(device)
    return time.perf_counter() - begin


def synchronize(device: torch.device) -> None:
    """Wait until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
