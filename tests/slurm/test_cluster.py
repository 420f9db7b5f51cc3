"""Cluster files: those that ship, and what is refused."""

from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from framework.errors import UserError
from slurm.cluster import cluster_names, load_cluster
from slurm.shape import Shape, shape_of


def test_files_that_ship_load() -> None:
    assert {"example_gh200", "example_h100"} <= set(cluster_names())
    for name in cluster_names():
        assert load_cluster(name).gpus_per_node > 0


@pytest.mark.parametrize(("change", "said"), [
    ({"gpu_per_node": 8}, r"unknown key; nearest: gpus_per_node"),
    ({"gpus_per_node": 0}, "greater than or equal to 1"),
    ({"gpus_per_node": None}, "given null"),
    ({"partition": "a b; rm -rf /"}, "a word without blanks"),
    ({"environment": ["HF_TOKEN=hf_123"]}, "never its value"),
    ({"sbatch": {"nodes": 3}}, "another option than nodes"),
    ({"sbatch": {"time": "1"}}, "another option than time"),
    ({"sbatch": {"x y": 3}}, "long option of sbatch"),
    ({"time": 86400}, "valid string"),
    ({"time": "tomorrow"}, "a time as sbatch has it"),
    ({"setup": ["a\nb"]}, "one line"),
    ({"requeue": True, "links": 3}, "1 while requeue is true"),
    ({"container": {"kind": "docker", "image": "x"}}, "'pyxis' or 'apptainer'"),
    ({"wheels": "/w", "container": {"kind": "pyxis", "image": "x"}}, "none where wheels are given"),
    ({"launcher": "ssh"}, "'srun' or 'torchrun'"),
])
def test_mistakes_are_one_line_with_the_place(tmp_path: Path, change: dict, said: str) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump({"gpus_per_node": 8} | change))
    with pytest.raises(UserError, match=said) as error:
        load_cluster(str(file))
    assert str(file) in str(error.value) and "\n" not in str(error.value)


def test_unknown_clusters_are_refused_with_those_there_are() -> None:
    with pytest.raises(UserError, match="nearest: example_h100; allowed: example_gh200, example_h100"):
        load_cluster("example_h10")
    with pytest.raises(UserError, match="no such file"):
        load_cluster("nowhere.yaml")


@given(world=st.integers(1, 4096), gpus=st.integers(1, 16))
def test_nodes_follow_from_the_world(world: int, gpus: int) -> None:
    """One node and so many of its GPUs, or whole nodes; nothing in between."""
    if world <= gpus:
        assert shape_of(world, gpus, "x") == Shape(1, world)
    elif world % gpus == 0:
        assert shape_of(world, gpus, "x") == Shape(world // gpus, gpus)
        assert shape_of(world, gpus, "x").world == world
    else:
        with pytest.raises(UserError, match=f"{world} ranks = {world // gpus} x {gpus} GPUs [+] {world % gpus} ranks"):
            shape_of(world, gpus, "x")
