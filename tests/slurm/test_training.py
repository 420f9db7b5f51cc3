"""Training itself on two nodes of a real SLURM: interrupted, requeued, and the same to the last bit."""

import sys
from pathlib import Path

import pytest
import torch

from tests.helpers.runs import all_rows, write_recipe
from tests.slurm.conftest import Desk, all_in

pytestmark = pytest.mark.slurm
EXPERTS_OVER_NODES = ("parallel.dp_shard=2", "parallel.ep=2", "training.steps=12", "checkpoint.every=6")


def weights(run: Path) -> dict[str, torch.Tensor]:
    from torch.distributed.checkpoint import FileSystemReader
    from torch.distributed.checkpoint.state_dict_loader import _load_state_dict_from_keys

    newest = max((run / "checkpoints").iterdir(), key=lambda path: int(path.name[5:]))
    assert newest.name == "step_12"
    return _load_state_dict_from_keys(storage_reader=FileSystemReader(newest / "state"))


@pytest.mark.parametrize("launcher", ["srun", "torchrun"])
def test_a_mixture_over_two_nodes_is_interrupted_and_stays_the_same(desk: Desk, launcher: str) -> None:
    recipe = write_recipe(desk.folder)
    file = desk.cluster_file(python=sys.executable, gpus_per_node=1, launcher=launcher,
                             environment=["UPMIX_DATA"], variables={"OMP_NUM_THREADS": "1"})
    job, = desk.submit(recipe, *EXPERTS_OVER_NODES, "--name", "disturbed", cluster=file)["jobs"][0]["ids"]
    desk.wait_for_file("runs/disturbed/metrics.jsonl")
    desk.slurm.run("scancel", "--batch", "--signal=USR1", job)
    if launcher == "srun":
        desk.upmix("train", recipe, *EXPERTS_OVER_NODES, "--name", "whole")
    row, = desk.wait("disturbed", all_in("FINISHED"), seconds=120)
    assert row["restarts"] == 1, desk.log("disturbed")
    assert "asked to by USR1" in desk.log("disturbed")
    nodes = desk.slurm.run("squeue", "--noheader", "--states=all", f"--jobs={job}", "--Format=NumNodes:10")
    assert nodes.strip() == "2"
    if launcher == "srun":
        compare(desk.folder / "runs/disturbed", desk.folder / "runs/whole")


def compare(disturbed: Path, whole: Path) -> None:
    assert all_rows(disturbed) == all_rows(whole)
    left, right = weights(disturbed), weights(whole)
    assert left.keys() == right.keys()
    compared = [name for name, tensor in left.items() if isinstance(tensor, torch.Tensor)]
    assert len(compared) > 20
    assert [name for name in compared if not torch.equal(left[name], right[name])] == []
