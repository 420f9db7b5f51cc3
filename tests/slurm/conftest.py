"""A SLURM cluster of three nodes for all tests that are marked `slurm`, and what they say to it."""

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

from tests.helpers.slurm_cluster import SlurmCluster, missing

# The nodes of the example clusters, which are never powered up: sbatch --test-only wants no more.
EXAMPLES = f"""
NodeName=h[1-64] NodeHostname={socket.gethostname()} Port=20001-20064 CPUs=96 RealMemory=1048576 Gres=gpu:h100:8 State=CLOUD
NodeName=g[1-128] NodeHostname={socket.gethostname()} Port=20101-20228 CPUs=288 RealMemory=1048576 Gres=gpu:gh200:4 State=CLOUD
PartitionName=gpu Nodes=h[1-64] MaxTime=INFINITE State=UP
PartitionName=gh200 Nodes=g[1-128] MaxTime=INFINITE State=UP
"""  # noqa: E501
TRAINER = Path(__file__).with_name("trainer.py")
CHECKOUT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def slurm() -> Iterator[SlurmCluster]:
    """Three nodes of two GPUs that are none."""
    if (reason := missing()) is not None:
        pytest.skip(reason)
    folder = Path(tempfile.mkdtemp(prefix="upmix-slurm-"))
    cluster = SlurmCluster(folder / "c", nodes=3, gpus=2, extra=EXAMPLES)
    yield cluster
    cluster.stop()
    shutil.rmtree(folder)


class Desk:
    """A user's folder on the cluster: `upmix` as a command of its own, and questions to SLURM."""

    def __init__(self, folder: Path, cluster: SlurmCluster) -> None:
        self.folder, self.slurm = folder, cluster

    def cluster_file(self, name: str = "cluster.yaml", **changes: object) -> str:
        """A cluster's file whose Python is a trainer without PyTorch, unless `python` says otherwise."""
        values = {"partition": "main", "time": "5", "gpus_per_node": 2, "cpus_per_gpu": 1, "python": str(TRAINER),
                  "signal_seconds": 10} | changes
        (self.folder / name).write_text(yaml.safe_dump({key: value for key, value in values.items()
                                                        if value is not None}))
        return name

    def call(self, *words: object, **environment: str) -> subprocess.CompletedProcess:
        command = [sys.executable, "-P", "-m", "framework.cli", *map(str, words)]
        return subprocess.run(command, cwd=self.folder, capture_output=True, text=True, timeout=120,
                              env=os.environ | self.slurm.environment | {"PYTHONPATH": str(CHECKOUT)} | environment)

    def upmix(self, *words: object, **environment: str) -> str:
        """Standard output of a command that must end well."""
        done = self.call(*words, **environment)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def submit(self, source: object, *words: object, cluster: str | None = None) -> dict:
        """What `upmix submit --json` says."""
        return json.loads(self.upmix("submit", source, *words, "--cluster", cluster or self.cluster_file(), "--json"))

    def rows(self, name: str) -> list[dict]:
        return json.loads(self.upmix("status", name, "--json"))["rows"]

    def wait(self, name: str, condition: Callable[[list[dict]], bool], seconds: float = 60) -> list[dict]:
        """The rows of `upmix status NAME` once they fulfil a condition."""
        deadline = time.monotonic() + seconds
        while not condition(rows := self.rows(name)):
            assert time.monotonic() < deadline, (rows, self.log(name))
            time.sleep(0.5)
        return rows

    def wait_for_file(self, path: str, seconds: float = 60) -> str:
        deadline = time.monotonic() + seconds
        while not (found := self.folder / path).exists():
            assert time.monotonic() < deadline, f"{path} did not come"
            time.sleep(0.05)
        return found.read_text()

    def log(self, name: str) -> str:
        """All logs of a submission."""
        folder = self.folder / "runs" / name / "job" / "log"
        return "\n".join(path.read_text() for path in sorted(folder.glob("*")))


    def leave(self) -> None:
        """Cancel what was submitted from here, in folders below too."""
        records = [json.loads(path.read_text()) for path in self.folder.rglob("job/submission.json")]
        if ids := [each for record in records for job in record["jobs"] for each in job["ids"]]:
            subprocess.run(["scancel", "--quiet", *ids], env=os.environ | self.slurm.environment, capture_output=True)


@pytest.fixture
def desk(slurm: SlurmCluster, tmp_path: Path) -> Iterator[Desk]:
    desk = Desk(tmp_path, slurm)
    yield desk
    desk.leave()


def all_in(*states: str) -> Callable[[list[dict]], bool]:
    """A condition for `Desk.wait`: every row is in one of these states."""
    return lambda rows: all(row["state"] in states for row in rows)
