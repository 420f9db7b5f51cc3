"""How long a function keeps the GPU busy, and how long the host takes to launch it."""

import time
from collections.abc import Callable
from statistics import median
from typing import NamedTuple

import torch

SECONDS = 0.1
"""Of the GPU's time that is watched, about, with FEWEST to MOST runs."""
FEWEST, MOST = 5, 100
FLUSHED_BYTES = 2**28
"""Written before each run: more than four times what an H200 keeps in its cache."""


class Times(NamedTuple):
    """Medians in milliseconds. gpu: from the first kernel's start to the last one's end, none of them waiting for the
    host. host: until all are launched; where this is longer, a GPU with nothing else to do waits."""

    gpu: float
    host: float


def times_of(function: Callable[[], object]) -> Times:
    """Of runs on the current GPU, its cache flushed before each.

    Before each run the GPU is made to sleep for longer than launching took at first, so that its own time shows. Of a
    function that waits for the GPU itself, which waits for that sleep too, it shows with the host's.
    """
    function()
    launching, whole = _once(function)
    hertz = 1e3 * torch.cuda.get_device_properties(torch.cuda.current_device()).clock_rate
    other = torch.empty(FLUSHED_BYTES, dtype=torch.uint8, device="cuda")
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    found = []
    for _ in range(max(FEWEST, min(MOST, int(SECONDS / whole)))):
        other.zero_()
        torch.cuda._sleep(int(hertz * (2 * launching + 1e-4)))
        start.record()
        begin = time.perf_counter()
        function()
        host = time.perf_counter() - begin
        end.record()
        torch.cuda.synchronize()
        found.append((start.elapsed_time(end), 1e3 * host))
    return Times(*map(median, zip(*found, strict=True)))


def _once(function: Callable[[], object]) -> tuple[float, float]:
    """Seconds of the host until it is launched, and until it is done."""
    torch.cuda.synchronize()
    begin = time.perf_counter()
    function()
    launched = time.perf_counter() - begin
    torch.cuda.synchronize()
    return launched, time.perf_counter() - begin
