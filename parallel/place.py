"""A rank's place in the world. Imports no torch, so that a command that only starts ranks does so at once."""

import os
import re
from dataclasses import dataclass


class WrongPlace(ValueError):
    """A variable with which a launcher tells a rank its place is missing, or is no such thing."""


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
    """The place that a launcher gave this process: ours, torchrun or srun. None: started by hand, alone.

    Raises WrongPlace where variables of a launcher make no place.
    """
    if "RANK" in os.environ and "WORLD_SIZE" in os.environ:
        size = number("WORLD_SIZE", 1)
        local_rank = number("LOCAL_RANK", 0, default=0)
        local_size = number("LOCAL_WORLD_SIZE", local_rank + 1, default=local_rank + 1)
        return Place(number("RANK", 0, size - 1), size, local_rank, local_size)
    # A batch script or an interactive shell under SLURM also has these, but is one task: it starts its own ranks.
    size = number("SLURM_NTASKS", 1, default=1)
    if size > 1 and "SLURM_PROCID" in os.environ and "SLURM_STEP_ID" in os.environ:
        local_rank = number("SLURM_LOCALID", 0)
        return Place(
            number("SLURM_PROCID", 0, size - 1), size, local_rank, _slurm_local_size(local_rank),
            one_gpu="SLURM_GPUS_PER_TASK" in os.environ or "SLURM_GPU_BIND" in os.environ,
        )
    return None


def number(variable: str, smallest: int, largest: int | None = None, default: int | None = None) -> int:
    """The whole number in a variable of the environment, within bounds. Raises WrongPlace."""
    text = os.environ.get(variable)
    if text is None and default is not None:
        return default
    value = int(text) if text is not None and re.fullmatch("[0-9]{1,18}", text) else -1
    if value < smallest or (largest is not None and value > largest):
        upper = "on" if largest is None else f"to {largest}"
        raise WrongPlace(f"${variable} {'is not set' if text is None else f'is {text!r}'}; allowed: a whole number "
                         f"from {smallest} {upper}")
    return value


def _slurm_local_size(local_rank: int) -> int:
    """Tasks of this step on this machine; SLURM writes 4(x2),3 for two machines with four and one with three."""
    counts: list[int] = []
    for count, repeated in re.findall(r"(\d+)(?:\(x(\d+)\))?", os.environ.get("SLURM_STEP_TASKS_PER_NODE", "")):
        counts += [int(count)] * int(repeated or 1)
    node = number("SLURM_NODEID", 0, default=0)
    return counts[node] if node < len(counts) else local_rank + 1
