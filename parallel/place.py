"""A rank's place in the world. Imports no torch, so that a command that only starts ranks does so at once."""

import os
import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Place:
    """Which rank of how many this process is, and which of those on its machine.

    one_gpu: the launcher shows each rank a GPU of its own as if there were no other.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1
    one_gpu: bool = False


def find_place() -> Place | None:
    """The place that a launcher gave this process: ours, torchrun or srun. None: started by hand, alone."""
    if "RANK" in os.environ and "WORLD_SIZE" in os.environ:
        local_rank = int(os.environ.get("LOCAL_RANK", 0))
        local_size = int(os.environ.get("LOCAL_WORLD_SIZE", local_rank + 1))
        return Place(int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]), local_rank, local_size)
    # A batch script or an interactive shell under SLURM also has these, but is one task: it starts its own ranks.
    if int(os.environ.get("SLURM_NTASKS", 1)) > 1 and "SLURM_PROCID" in os.environ and "SLURM_STEP_ID" in os.environ:
        local_rank = int(os.environ["SLURM_LOCALID"])
        return Place(
            int(os.environ["SLURM_PROCID"]), int(os.environ["SLURM_NTASKS"]), local_rank, _slurm_local_size(local_rank),
            one_gpu="SLURM_GPUS_PER_TASK" in os.environ or "SLURM_GPU_BIND" in os.environ,
        )
    return None


def _slurm_local_size(local_rank: int) -> int:
    """Tasks of this step on this machine; SLURM writes 4(x2),3 for two machines with four and one with three."""
    counts: list[int] = []
    for count, repeated in re.findall(r"(\d+)(?:\(x(\d+)\))?", os.environ.get("SLURM_STEP_TASKS_PER_NODE", "")):
        counts += [int(count)] * int(repeated or 1)
    node = int(os.environ.get("SLURM_NODEID", 0))
    return counts[node] if node < len(counts) else local_rank + 1
