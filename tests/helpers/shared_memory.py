"""What symmetric memory is to GPUs, on the CPU: files in memory that all ranks map."""

import os
import tempfile

import torch
import torch.distributed as dist
from torch import Tensor


class SharedMemory:
    """Allocates as `parallel.dispatch.symmetric_memory.Allocate` says; peers' memory stays mapped as long as this."""

    def __init__(self) -> None:
        self.mapped: list[list[Tensor]] = []

    def __call__(self, num_bytes: int, device: torch.device, group: dist.ProcessGroup) -> tuple[Tensor, Tensor]:
        file, mine = tempfile.mkstemp(dir="/dev/shm" if os.path.isdir("/dev/shm") else None)
        os.truncate(file, num_bytes)
        os.close(file)
        paths = [""] * group.size()
        dist.all_gather_object(paths, mine, group)
        memory_R = [torch.from_file(path, shared=True, size=num_bytes, dtype=torch.uint8) for path in paths]
        dist.barrier(group)
        os.unlink(mine)
        self.mapped.append(memory_R)
        return memory_R[group.rank()], torch.tensor([memory.data_ptr() for memory in memory_R])
