"""A checkpoint that somebody crafted runs nothing, even where its manifest is in order."""

import io
import os
import pathlib
import pickle

import pytest
import torch
import torch.distributed.checkpoint as dcp

from framework.errors import UserError
from framework.surgery.reader import SourceReader
from framework.training.checkpoint import Checkpointer, DamagedCheckpoint, checkpoint_folder, damage
from framework.training.checkpoint import load as load_checkpoint
from framework.training.checkpoint.manifest import Manifest, file_facts, write_manifest
from framework.training.checkpoint.safe_reader import SafeReader
from framework.training.peers import Peers


class Command:
    """Unpickled freely, it makes a file."""

    def __init__(self, marker):
        self.marker = str(marker)

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


def seal(checkpoint):
    """A manifest that fits, as an attacker would write it."""
    files = {f"state/{path.name}": file_facts(path) for path in (checkpoint / "state").iterdir()}
    write_manifest(checkpoint, Manifest(9, {}, files))


def save(root, entries):
    checkpoint = checkpoint_folder(root, 9)
    (checkpoint / "state").mkdir(parents=True)
    dcp.save(entries, storage_writer=dcp.FileSystemWriter(checkpoint / "state"), no_dist=True)
    return checkpoint


def hostile_metadata(root, marker):
    checkpoint = save(root, {"model.a": torch.ones(2)})
    (checkpoint / "state" / ".metadata").write_bytes(pickle.dumps(Command(marker)))
    return checkpoint


def hostile_planner_data(root, marker):
    checkpoint = save(root, {"model.a": torch.ones(2)})
    path = checkpoint / "state" / ".metadata"
    metadata = SafeReader(checkpoint / "state").read_metadata()
    metadata.planner_data = {"model.a": Command(marker)}
    path.write_bytes(pickle.dumps(metadata))
    return checkpoint


def byte_entry(root, marker):
    return save(root, {"model.a": Command(marker)})


def hostile_tensor(root, marker):
    checkpoint = save(root, {"model.a": torch.ones(2)})
    path = checkpoint / "state" / "__0_0.distcp"
    payload = io.BytesIO()
    torch.save(Command(marker), payload)
    path.write_bytes(payload.getvalue().ljust(path.stat().st_size, b"\0"))
    metadata = SafeReader(checkpoint / "state").read_metadata()
    for info in metadata.storage_data.values():
        info.length = len(payload.getvalue())
    (checkpoint / "state" / ".metadata").write_bytes(pickle.dumps(metadata))
    return checkpoint


def file_elsewhere(root, marker):
    checkpoint = save(root, {"model.a": torch.ones(2)})
    metadata = SafeReader(checkpoint / "state").read_metadata()
    for info in metadata.storage_data.values():
        info.relative_path = "../../secret"
    (checkpoint / "state" / ".metadata").write_bytes(pickle.dumps(metadata))
    return checkpoint


def with_state(root, module, name, state):
    """A checkpoint whose .metadata sets attributes on what it names, before it describes a tensor as it should."""
    checkpoint = save(root, {"model.a": torch.ones(2)})
    path = checkpoint / "state" / ".metadata"
    build = f"c{module}\n{name}\n".encode() + pickle.dumps(state, protocol=0)[:-1] + b"b0"
    path.write_bytes(build + path.read_bytes())
    return checkpoint


def class_attributes(root, marker):
    return with_state(root, "pathlib", "PosixPath", (None, {"hostile": 1}))


def function_attributes(root, marker):
    return with_state(root, "torch.serialization", "_get_layout", {"hostile": 1})


def no_chunk(root, marker):
    checkpoint = save(root, {"model.a": torch.ones(2)})
    metadata = SafeReader(checkpoint / "state").read_metadata()
    metadata.state_dict_metadata["model.a"].chunks = [None]
    (checkpoint / "state" / ".metadata").write_bytes(pickle.dumps(metadata))
    return checkpoint


CRAFTED = [hostile_metadata, hostile_planner_data, byte_entry, hostile_tensor, file_elsewhere,
           class_attributes, function_attributes, no_chunk]


@pytest.mark.parametrize("craft", CRAFTED)
def test_loading_runs_nothing_and_says_that_it_is_damaged(craft, tmp_path):
    marker = tmp_path / "ran"
    seal(checkpoint := craft(tmp_path, marker))
    with pytest.raises(DamagedCheckpoint):
        load_checkpoint(checkpoint, {"model.a": torch.zeros(2)}, Peers())
    assert not marker.exists()
    assert not hasattr(pathlib.PosixPath, "hostile") and not hasattr(torch.serialization._get_layout, "hostile")


def test_what_a_tensors_pickle_names_is_told_without_advice_to_run_it(tmp_path):
    seal(checkpoint := hostile_tensor(tmp_path, tmp_path / "ran"))
    with pytest.raises(DamagedCheckpoint, match=r"a pickle names \S+; allowed: tensors") as error:
        load_checkpoint(checkpoint, {"model.a": torch.zeros(2)}, Peers())
    with pytest.raises(UserError, match=r"model.a cannot be read: a pickle names \S+; allowed: tensors") as alone:
        SourceReader(checkpoint, Peers()).whole("model.a")
    for told in (str(error.value), str(alone.value)):
        assert "\n" not in told and "weights_only" not in told and "Traceback" not in told


@pytest.mark.parametrize("craft", [each for each in CRAFTED if each is not hostile_tensor])
def test_verifying_runs_nothing_and_tells(craft, tmp_path):
    marker = tmp_path / "ran"
    seal(craft(tmp_path, marker))
    assert damage(tmp_path, 9)
    assert not marker.exists()


def test_a_resume_goes_back_to_the_checkpoint_before(tmp_path):
    Checkpointer(tmp_path, Peers()).save(3, {"model.a": torch.full((2,), 3.0)}, {}, background=False)
    seal(hostile_metadata(tmp_path, tmp_path / "ran"))
    tensors = {"model.a": torch.zeros(2)}
    assert Checkpointer(tmp_path, Peers()).load_newest(tensors).step == 3
    assert not (tmp_path / "ran").exists()


def test_the_crafted_files_do_run_in_torchs_own_reader(tmp_path):
    seal(checkpoint := hostile_metadata(tmp_path, tmp_path / "ran"))
    with pytest.raises(Exception):  # noqa: B017
        dcp.FileSystemReader(checkpoint / "state").read_metadata()
    assert (tmp_path / "ran").exists()
