"""A rank's place in the world. Imports no torch, so that a command that only starts ranks does so at once."""

import os
from dataclasses import dataclass


@dataclass(frozen=True)
class Place:
    """Which rank of how many this process is, and which of those on its machine."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0


def find_place() -> Place | None:
    """The place that a launcher gave this process: ours, torchrun or srun. None: started by hand, alone."""
    if "RANK" in os.environ and "WORLD_SIZE" in os.environ:
        return Place(*(int(os.environ[name]) for name in ("RANK", "WORLD_SIZE")), int(os.environ.get("LOCAL_RANK", 0)))
    # A batch script or an interactive shell under SLURM also has these, but is one task: it starts its own ranks.
    if int(os.environ.get("SLURM_NTASKS", 1)) > 1 and "SLURM_PROCID" in os.environ and "SLURM_STEP_ID" in os.environ:
        return Place(*(int(os.environ[name]) for name in ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID")))
    return None
