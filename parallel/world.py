"""Joining the world as a rank: gloo on CPU, NCCL on CUDA, by the same code."""

import contextlib
import datetime
import os
import re
from collections.abc import Iterator

import torch
import torch.distributed as dist

from parallel.place import Place

TIMEOUT = datetime.timedelta(minutes=30)


def choose_device(local_rank: int) -> torch.device:
    """The GPU of this rank where the machine has GPUs, else the CPU. Raises ValueError if GPUs are too few."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    if local_rank >= (num_gpus := torch.cuda.device_count()):
        raise ValueError(f"rank {local_rank} of this machine has no GPU of its own: there are {num_gpus}")
    return torch.device("cuda", local_rank)


@contextlib.contextmanager
def join(place: Place, device: torch.device) -> Iterator[None]:
    """Be a rank of the default process group within the block. Tensors on the CPU go over gloo, on CUDA over NCCL."""
    if device.type == "cuda":
        torch.cuda.set_device(device)
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, store=_store(place), rank=place.rank, world_size=place.size, timeout=TIMEOUT)
    try:
        yield
    except BaseException:
        # No tidy leave-taking: the others may be waiting within a collective, and end when this process does.
        _report_failure(place)
        raise
    dist.destroy_process_group()


def _store(place: Place) -> dist.Store:
    if place.size == 1:
        return dist.HashStore()
    if "MASTER_ADDR" not in os.environ:
        host, port = _slurm_address()
    else:
        host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    served_elsewhere = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    listener = os.environ.get("UPMIX_LISTENER") if place.rank == 0 else None
    store = dist.TCPStore(
        host, port, place.size, is_master=place.rank == 0 and not served_elsewhere, timeout=TIMEOUT,
        multi_tenant=True, master_listen_fd=None if listener is None else int(listener),
    )
    # An agent's store outlives a restart of its ranks: each attempt counts from its own keys.
    return dist.PrefixStore(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"), store)


def _slurm_address() -> tuple[str, int]:
    """The first machine of the step, and a port that two jobs do not share."""
    nodes = os.environ.get("SLURM_STEP_NODELIST") or os.environ["SLURM_NODELIST"]
    prefix, first = re.match(r"([^\[,]+)(?:\[(\d+))?", nodes).groups()
    return prefix + (first or ""), 20000 + int(os.environ["SLURM_JOB_ID"]) % 10000


def _report_failure(place: Place) -> None:
    """Tell the process that started the ranks that this one failed; the first to do so is the cause."""
    if "UPMIX_FAILURES" in os.environ:
        os.write(int(os.environ["UPMIX_FAILURES"]), f"{place.rank}\n".encode())
