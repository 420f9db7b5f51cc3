"""Which of this machine's GPUs a run gets, where several run at a time."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

VISIBLE = "CUDA_VISIBLE_DEVICES"


def visible_gpus() -> list[str]:
    """This process's GPUs, as CUDA_VISIBLE_DEVICES names them; none where there are none."""
    if not Path("/dev/nvidiactl").exists():
        return []
    if VISIBLE in os.environ:
        return [name for name in os.environ[VISIBLE].split(",") if name]
    import torch

    return [str(place) for place in range(torch.cuda.device_count())]


def gpus_of(slot: int, num_ranks: int, gpus: Sequence[str]) -> dict[str, str]:
    """What a run's environment says of GPUs: as many as it has ranks, after those of the slots before.

    slot: 0 for the first of the runs at a time. Runs share GPUs where there are not enough for all; one of more ranks
    than there are GPUs sees them all, and computes on the CPU.
    """
    if not 0 < num_ranks <= len(gpus):
        return {}
    places = ((slot * num_ranks + rank) % len(gpus) for rank in range(num_ranks))
    return {VISIBLE: ",".join(gpus[place] for place in places)}
