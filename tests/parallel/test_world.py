"""A rank's place, as launchers tell it, and joining a world that they prepared."""

import contextlib
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from parallel import Place, choose_device, find_place, join
from parallel.world import _slurm_address

ROOT = Path(__file__).resolve().parents[2]
NAMES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT", "SLURM_PROCID", "SLURM_NTASKS",
         "SLURM_LOCALID", "SLURM_NODEID", "SLURM_STEP_TASKS_PER_NODE", "SLURM_GPUS_PER_TASK", "SLURM_GPU_BIND",
         "LOCAL_WORLD_SIZE", "UPMIX_FAILURES", "SLURM_STEP_ID", "SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_NODELIST")


@pytest.fixture
def environment(monkeypatch):
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)
    return lambda **values: [monkeypatch.setenv(name, str(value)) for name, value in values.items()]


def test_started_by_hand(environment):
    assert find_place() is None


def test_torchrun(environment):
    environment(RANK=5, WORLD_SIZE=8, LOCAL_RANK=1, LOCAL_WORLD_SIZE=4)
    assert find_place() == Place(5, 8, 1, 4)


def test_srun(environment):
    environment(SLURM_PROCID=3, SLURM_NTASKS=4, SLURM_LOCALID=1, SLURM_STEP_ID=0)
    assert find_place() == Place(3, 4, 1, 2)
    environment(SLURM_STEP_TASKS_PER_NODE="4(x2),3", SLURM_NODEID=1, SLURM_GPUS_PER_TASK=1)
    assert find_place() == Place(3, 4, 1, 4, one_gpu=True)
    environment(SLURM_NODEID=2)
    assert find_place().local_size == 3


@pytest.mark.parametrize("values", [
    dict(SLURM_PROCID=0, SLURM_NTASKS=4, SLURM_LOCALID=0),  # a batch script, outside any srun
    dict(SLURM_PROCID=0, SLURM_NTASKS=1, SLURM_LOCALID=0, SLURM_STEP_ID=0),  # one task, for example a shell
])
def test_a_lone_task_under_slurm_starts_its_own_ranks(environment, values):
    environment(**values)
    assert find_place() is None


@pytest.mark.parametrize("nodes, host", [
    ("node7", "node7"), ("gpu[003-004,9]", "gpu003"), ("a-b[12],c3", "a-b12"), ("n1,n2", "n1"),
])
def test_the_meeting_point_under_slurm_is_the_first_node(environment, nodes, host):
    environment(SLURM_STEP_NODELIST=nodes, SLURM_JOB_ID=1234567, SLURM_STEP_ID=0)
    assert _slurm_address() == (host, 24567)
    environment(SLURM_STEP_ID=1)
    assert _slurm_address() == (host, 25564)


def test_alone_without_a_network(environment):
    with join(Place(), torch.device("cpu")):
        total = torch.ones(())
        dist.all_reduce(total)
        assert (total.item(), dist.get_world_size()) == (1.0, 1)
    assert not dist.is_initialized()


def test_a_rank_that_raises_tells_its_starter_and_keeps_its_exception(environment):
    read, write = os.pipe()
    environment(UPMIX_FAILURES=write)
    with pytest.raises(KeyError), join(Place(), torch.device("cpu")):
        raise KeyError
    os.close(write)
    with os.fdopen(read) as reported:
        assert reported.read() == "0\n"
    assert not dist.is_initialized()


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_without_gpus_every_rank_computes_on_the_cpu():
    assert choose_device(Place(5, 8, 5, 8)) == torch.device("cpu")


@pytest.mark.parametrize(("num_gpus", "place", "device"), [
    (2, Place(3, 4, 1, 2), "cuda:1"), (4, Place(1, 2, 1, 2), "cuda:1"),
    (1, Place(3, 4, 3, 4, one_gpu=True), "cuda:0"),  # each task is shown its own
    (1, Place(0, 2, 0, 2), "cpu"), (1, Place(1, 2, 1, 2), "cpu"),  # sharing one would fail later, in NCCL
])
def test_each_rank_gets_a_gpu_of_its_own_or_none(monkeypatch, num_gpus, place, device):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: num_gpus)
    assert choose_device(place) == torch.device(device)


RANK = """
import os, torch, torch.distributed as dist
from parallel import choose_device, find_place, join
place = find_place()
with join(place, choose_device(place)):
    total = torch.tensor(place.rank + 1.0)
    dist.all_reduce(total)
    os.write(1, f"{place.rank} of {place.size} {total.item()}\\n".encode())  # whole lines, into one pipe
"""


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def job_of_a_free_port() -> int:
    """The number of a job whose meeting point is free."""
    for number in range(os.getpid(), os.getpid() + 100):
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", 20000 + number % 10000)):
            return number
    raise AssertionError("no port is free")


@pytest.mark.parametrize("meeting_point", [
    lambda: dict(MASTER_ADDR="127.0.0.1", MASTER_PORT=free_port()),
    lambda: dict(SLURM_STEP_NODELIST="localhost", SLURM_JOB_ID=job_of_a_free_port()),
], ids=["told by the batch script", "found from the step"])
def test_tasks_of_srun_meet(environment, meeting_point):
    """As srun starts them: one process a task, told its number by SLURM."""
    ranks, meeting_point = [], meeting_point()
    for rank in range(2):
        told = dict(SLURM_PROCID=rank, SLURM_NTASKS=2, SLURM_LOCALID=rank, SLURM_STEP_ID=0) | meeting_point
        values = os.environ | {name: str(value) for name, value in told.items()} | {"PYTHONPATH": str(ROOT)}
        ranks.append(subprocess.Popen([sys.executable, "-c", RANK], env=values, stdout=subprocess.PIPE, text=True))
    for rank, process in enumerate(ranks):
        out, _ = process.communicate(timeout=60)
        assert out == f"{rank} of 2 3.0\n"


def test_torchrun_starts_ranks_that_meet(environment, tmp_path):
    script = tmp_path / "rank.py"
    script.write_text(RANK)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(script)]
    result = subprocess.run(command, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
                            timeout=90)
    assert result.returncode == 0, result.stderr
    assert sorted(result.stdout.splitlines()) == [
        f"{rank} of 2 3.0" for rank in range(2)
    ]
