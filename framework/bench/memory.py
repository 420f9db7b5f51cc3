"""The most memory that a process had since it was last asked to forget."""

from __future__ import annotations

import re
from pathlib import Path

import torch

FORGET_PEAK = "5"
"""What Linux takes in clear_refs for: the peak is what is resident now (proc(5))."""


def forget_peak(device: torch.device) -> None:
    """Begin anew. Where the kernel does not let us, the peak of the host's memory is the process's since its start."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    try:
        Path("/proc/self/clear_refs").write_text(FORGET_PEAK)
    except OSError:
        pass


def peak_bytes(device: torch.device) -> int:
    """Bytes that tensors took on the GPU at most; on the CPU the process's resident memory.

    Of the kernel's own account (VmHWM): `getrusage` would count the process that started this one too.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return 1024 * int(re.search(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text()).group(1))
