"""Looking into a checkpoint, and writing its weights as whole tensors."""

import json

import pytest
import torch
from safetensors.torch import load_file
from torch.distributed.tensor import Shard, distribute_tensor

from framework.errors import UserError
from framework.training.checkpoint import Checkpointer, checkpoint_folder, consolidate, contents, stored_tensors
from framework.training.peers import Peers
from parallel import Mesh, MeshSizes


def whole(rows: int) -> torch.Tensor:
    return torch.arange(4.0 * rows).view(rows, 4)


def save_in_parts(root) -> None:
    mesh = Mesh(MeshSizes(dp_shard=2), "cpu")
    state = {f"model.{name}.weight": distribute_tensor(whole(rows), mesh.fsdp, [Shard(0)])
             for name, rows in (("a", 6), ("b", 3), ("c", 2))}
    state["optim.a.weight.exp_avg"] = distribute_tensor(whole(6), mesh.fsdp, [Shard(0)])
    Checkpointer(root, Peers()).save(3, state, {}, background=False)


@pytest.fixture
def saved(ranks, tmp_path):
    ranks.run(2, save_in_parts, tmp_path)
    return checkpoint_folder(tmp_path, 3)


def test_tensors_are_told_without_reading_them(saved):
    found = {tensor.name: (tensor.shape, tensor.dtype, tensor.num_chunks) for tensor in stored_tensors(saved)}
    assert found["model.a.weight"] == ((6, 4), torch.float32, 2)
    assert sorted(found) == ["model.a.weight", "model.b.weight", "model.c.weight", "optim.a.weight.exp_avg"]


def test_weights_come_out_whole_in_files_of_bounded_size(saved, tmp_path):
    out = tmp_path / "deep" / "whole"
    out.parent.mkdir()
    paths = consolidate(saved, out, file_bytes=100)
    assert [sorted(load_file(path)) for path in paths] == [["a.weight"], ["b.weight", "c.weight"]]
    weights = {name: tensor for path in paths for name, tensor in load_file(path).items()}
    assert all(torch.equal(weights[f"{name}.weight"], whole(rows)) for name, rows in (("a", 6), ("b", 3), ("c", 2)))
    index = json.loads((out / "model.safetensors.index.json").read_text())
    assert index["weight_map"]["b.weight"] == paths[1].name and index["metadata"]["total_size"] == 16 * 11
    with pytest.raises(UserError, match="allowed: a new folder"):
        consolidate(saved, out)


def test_what_cannot_be_finished_leaves_nothing(saved, tmp_path, monkeypatch):
    def write_a_little_and_fail(tensors, path, **options):
        path.write_bytes(b"0")
        raise OSError("disk full")

    before = sorted(tmp_path.iterdir())
    monkeypatch.setattr(contents, "save_file", write_a_little_and_fail)
    with pytest.raises(OSError, match="disk full"):
        consolidate(saved, tmp_path / "whole")
    assert sorted(tmp_path.iterdir()) == before
