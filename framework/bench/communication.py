"""How long collectives are under way in a step, as PyTorch's profiler sees them."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch.profiler import ProfilerActivity, profile

COLLECTIVES = ("gloo:", "ncclDevKernel", "ncclKernel")
"""How names of events begin: on the CPU the operations themselves, on a GPU their kernels."""


def communication_seconds(step: Callable[[], object], num_steps: int, device: torch.device) -> float:
    """Seconds a step in which at least one of this rank's collectives was under way, waiting for others included.

    Much of it may pass beside computation: it is no part of the phases that sum to a step.
    """
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if device.type == "cuda" else [])
    with profile(activities=activities, acc_events=True) as profiler:
        for _ in range(num_steps):
            step()
    spans = ((event.time_range.start, event.time_range.end) for event in profiler.events()
             if event.name.startswith(COLLECTIVES))
    return covered(spans) / 1e6 / num_steps


def covered(spans: Iterable[tuple[float, float]]) -> float:
    """The length of the union of spans (start, end)."""
    total, reached = 0.0, float("-inf")
    for start, end in sorted(spans):
        total += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return total
