"""Joining the world as a rank: gloo on CPU, NCCL on CUDA, by the same code."""

import contextlib
import datetime
import logging
import os
import re
import sys
from collections.abc import Iterator

import torch
import torch.distributed as dist

from parallel.place import Place, WrongPlace, number

log = logging.getLogger(__name__)

TIMEOUT = datetime.timedelta(minutes=30)


def choose_device(place: Place) -> torch.device:
    """A GPU of this rank's own, or the CPU where the machine's GPUs are fewer than its ranks."""
    num_gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if place.local_size <= num_gpus:
        return torch.device("cuda", place.local_rank)
    if num_gpus == 1 and place.one_gpu:
        return torch.device("cuda", 0)
    if num_gpus and place.rank == 0:
        log.warning("%d ranks on this machine, but %d GPUs: all ranks compute on the CPU", place.local_size, num_gpus)
    return torch.device("cpu")


@contextlib.contextmanager
def join(place: Place, device: torch.device, timeout: datetime.timedelta = TIMEOUT) -> Iterator[None]:
    """Be a rank of the default process group within the block. Tensors on the CPU go over gloo, on CUDA over NCCL.

    timeout: of a collective, for the ranks that are there. Raises WrongPlace where no variable tells where ranks meet.
    """
    if device.type == "cuda":
        torch.cuda.set_device(device)
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, store=_store(place), rank=place.rank, world_size=place.size, timeout=timeout)
    _keep_last_words()
    try:
        yield
    except BaseException:
        _report_failure(place)
        # gloo's threads must not outlive the interpreter. NCCL would wait for the others, who may be in a collective.
        if device.type == "cpu":
            dist.destroy_process_group()
        raise
    dist.destroy_process_group()


def _store(place: Place) -> dist.Store:
    if place.size == 1:
        return dist.HashStore()
    host, port = _address()
    served_elsewhere = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    listener = os.environ.get("UPMIX_LISTENER") if place.rank == 0 else None
    store = dist.TCPStore(
        host, port, place.size, is_master=place.rank == 0 and not served_elsewhere, timeout=TIMEOUT,
        multi_tenant=True, master_listen_fd=None if listener is None else int(listener),
    )
    # An agent's store outlives a restart of its ranks: each attempt counts from its own keys.
    return dist.PrefixStore(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"), store)


def _address() -> tuple[str, int]:
    if "MASTER_ADDR" in os.environ:
        return os.environ["MASTER_ADDR"], number("MASTER_PORT", 1, 65535)
    if "SLURM_STEP_ID" in os.environ:
        return _slurm_address()
    raise WrongPlace("$MASTER_ADDR is not set; allowed: the machine of rank 0, at which all ranks meet")


def _slurm_address() -> tuple[str, int]:
    """The first machine of the step, and a port that neither two jobs nor two steps of a job are likely to share."""
    nodes = os.environ.get("SLURM_STEP_NODELIST") or os.environ["SLURM_NODELIST"]
    prefix, first = re.match(r"([^\[,]+)(?:\[(\d+))?", nodes).groups()
    number = int(os.environ["SLURM_JOB_ID"]) + 997 * int(os.environ["SLURM_STEP_ID"])
    return prefix + (first or ""), 20000 + number % 10000


def _keep_last_words() -> None:
    """Leave a traceback that ends this rank to the process that started it, which shows the cause's and no other."""
    if "UPMIX_LAST_WORDS" not in os.environ:
        return
    hook = sys.excepthook

    def keep(*error: object) -> None:
        with open(int(os.environ["UPMIX_LAST_WORDS"]), "w", closefd=False) as file, contextlib.redirect_stderr(file):
            hook(*error)

    sys.excepthook = keep


def _report_failure(place: Place) -> None:
    """Tell the process that started the ranks that this one failed; the first to do so is the cause."""
    if "UPMIX_FAILURES" in os.environ:
        os.write(int(os.environ["UPMIX_FAILURES"]), f"{place.rank}\n".encode())
