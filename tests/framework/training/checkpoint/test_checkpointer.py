"""Checkpoints are whole or not there, checked, and kept by rule."""

import os
import signal
import subprocess
import sys
import textwrap
import threading

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

from framework.errors import UserError
from framework.training.checkpoint import Checkpointer, checkpoint_folder, damage, manifest, steps_present
from framework.training.checkpoint.folder import surplus
from framework.training.peers import Peers


def state(value: float = 0.0) -> dict[str, torch.Tensor]:
    value = float(value)
    return {"model.a": torch.arange(12.0).reshape(3, 4) + value, "model.b": torch.full((2,), value).bfloat16(),
            "optim.a.step": torch.tensor(value)}


def saved(root, *steps, **rules) -> Checkpointer:
    checkpointer = Checkpointer(root, Peers(), **rules)
    for step in steps:
        checkpointer.save(step, state(step), {"skipped_steps": step})
    checkpointer.wait()
    return checkpointer


def load(root):
    """(step, tensors) of what a new process would load."""
    tensors = {name: torch.zeros_like(tensor) for name, tensor in state().items()}
    manifest = Checkpointer(root, Peers()).load_newest(tensors)
    return manifest and manifest.step, tensors


def test_what_was_saved_is_loaded_and_training_may_run_on_meanwhile(tmp_path):
    checkpointer, tensors = Checkpointer(tmp_path, Peers()), state(5)
    checkpointer.save(7, tensors, {"skipped_steps": 3})
    for tensor in tensors.values():
        tensor.zero_()
    checkpointer.wait()
    step, loaded = load(tmp_path)
    assert step == 7
    for name, tensor in state(5).items():
        assert torch.equal(loaded[name], tensor) and loaded[name].dtype == tensor.dtype


def test_torchs_own_tool_reads_it(tmp_path):
    saved(tmp_path, 2)
    dcp_to_torch_save(checkpoint_folder(tmp_path, 2) / "state", tmp_path / "flat.pt")
    flat = torch.load(tmp_path / "flat.pt", weights_only=True)
    assert flat.keys() == state().keys() and all(torch.equal(flat[name], state(2)[name]) for name in flat)


def test_nothing_to_load(tmp_path):
    assert load(tmp_path)[0] is None


@pytest.mark.parametrize("name", ["manifest.json", "state/.metadata", "state/__0_0.distcp"])
@pytest.mark.parametrize("harm", ["bit", "cut", "gone"])
def test_a_damaged_newest_checkpoint_gives_way_to_the_one_before(tmp_path, name, harm, caplog):
    saved(tmp_path, 3, 6)
    path = checkpoint_folder(tmp_path, 6) / name
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data if harm == "bit" else data[: len(data) // 2])
    if harm == "gone":
        path.unlink()
    assert damage(tmp_path, 6)
    step, tensors = load(tmp_path)
    assert step == 3 and torch.equal(tensors["model.a"], state(3)["model.a"])
    said, = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert "step_6" in said and "\n" not in said
    saved(tmp_path, 6)
    assert load(tmp_path)[0] == 6


def test_any_flipped_bit_of_the_manifest_is_seen(tmp_path):
    saved(tmp_path, 1)
    path = checkpoint_folder(tmp_path, 1) / "manifest.json"
    good = path.read_bytes()
    for byte in range(0, len(good), 3):
        data = bytearray(good)
        data[byte] ^= 0x04
        path.write_bytes(data)
        assert damage(tmp_path, 1) or data.split() == good.split(), data
    path.write_bytes(good)
    assert damage(tmp_path, 1) is None


def test_keep_last_and_keep_every(tmp_path):
    saved(tmp_path, *range(1, 8), keep_last=2, keep_every=3)
    assert steps_present(tmp_path) == [3, 6, 7]


@given(st.sets(st.integers(1, 50)), st.none() | st.integers(1, 5), st.none() | st.integers(1, 10))
def test_rule_of_retention(steps, keep_last, keep_every):
    kept = steps - set(surplus(sorted(steps), keep_last, keep_every))
    newest = sorted(steps)[-keep_last:] if keep_last else steps
    assert kept == {step for step in steps if step in newest or (keep_every and step % keep_every == 0)}


def test_an_error_in_the_background_surfaces_at_the_next_call(tmp_path):
    checkpointer = Checkpointer(tmp_path / "checkpoints", Peers())
    (tmp_path / "checkpoints" / ".step_1.tmp").write_text("in the way")
    checkpointer.save(1, state(), {})
    checkpointer._thread.join()
    with pytest.raises(RuntimeError, match="could not be written"):
        checkpointer.check()


def harm(root, step):
    (checkpoint_folder(root, step) / "state" / "__0_0.distcp").write_bytes(b"")


def test_where_none_is_good_a_resume_is_refused_and_all_stay_as_they_are(tmp_path):
    saved(tmp_path, 3, 6)
    harm(tmp_path, 3)
    harm(tmp_path, 6)
    for _ in range(2):
        with pytest.raises(UserError, match="none of the checkpoints is good: step_3, step_6"):
            load(tmp_path)
    checkpoint_folder(tmp_path, 3).rename(tmp_path / "step_3.damaged")
    checkpoint_folder(tmp_path, 6).rename(tmp_path / "step_6.damaged")
    with pytest.raises(UserError, match="step_3.damaged, step_6.damaged"):
        load(tmp_path)


def test_damaged_checkpoints_of_one_step_are_all_kept(tmp_path):
    saved(tmp_path, 3)
    for _ in range(3):
        saved(tmp_path, 6)
        harm(tmp_path, 6)
        assert load(tmp_path)[0] == 3
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "step_3", "step_6.damaged", "step_6.damaged.2", "step_6.damaged.3"]


def test_a_format_of_another_version_is_refused_and_left_alone(tmp_path, monkeypatch):
    saved(tmp_path, 3)
    monkeypatch.setattr(manifest, "FORMAT", 2)
    saved(tmp_path, 6)
    monkeypatch.undo()
    with pytest.raises(UserError, match="step_6: format 2 is not known; this version reads 1"):
        load(tmp_path)
    assert steps_present(tmp_path) == [3, 6]


def test_a_checkpoint_of_other_tensors_is_refused_and_left_alone(tmp_path):
    saved(tmp_path, 3)
    with pytest.raises(UserError, match="model.c"):
        Checkpointer(tmp_path, Peers()).load_newest({"model.c": torch.zeros(1)})
    assert steps_present(tmp_path) == [3]


def load_with_a_blind_rank(root):
    """Rank 1 does not see the newest checkpoint's manifest."""
    from framework.training.checkpoint import folder

    peers, look = Peers(), folder.damage
    with pytest.MonkeyPatch.context() as patch:
        if peers.rank == 1:
            patch.setattr(folder, "damage", lambda root, step, *share:
                          "manifest.json is missing" if step == 6 else look(root, step, *share))
        try:
            Checkpointer(root, peers).load_newest({name: torch.zeros_like(tensor) for name, tensor in state().items()})
        except UserError as error:
            return str(error)


def test_what_one_rank_alone_finds_is_no_damage(ranks, tmp_path):
    saved(tmp_path, 3, 6)
    for said in ranks.run(2, load_with_a_blind_rank, tmp_path):
        assert "rank 1 finds that manifest.json is missing, but to rank 0 it is whole" in said
    assert steps_present(tmp_path) == [3, 6]


def save_with_a_failing_rank(root, failing):
    from framework.training.checkpoint import checkpointer

    peers = Peers()
    saver = Checkpointer(root, peers)

    def fail(*arguments):
        raise OSError("disk full")

    with pytest.MonkeyPatch.context() as patch:
        if peers.rank == failing:
            patch.setattr(checkpointer, "write_manifest" if failing == 0 else "file_facts", fail)
        saver.save(1, {"model.a": torch.ones(3)}, {})
        with pytest.raises(RuntimeError, match=f"rank {failing}: disk full"):
            saver.wait()


@pytest.mark.parametrize("failing", [0, 1])
def test_a_save_is_over_on_all_ranks_together_and_fails_on_all(ranks, tmp_path, failing):
    ranks.run(2, save_with_a_failing_rank, tmp_path, failing, timeout=20)
    assert steps_present(tmp_path) == []


def test_what_ends_training_waits_for_the_save_under_way(tmp_path, monkeypatch):
    write, go, join = Checkpointer._write, threading.Event(), threading.Thread.join
    monkeypatch.setattr(Checkpointer, "_write", lambda *arguments: (go.wait(), write(*arguments)))
    monkeypatch.setattr(threading.Thread, "join", lambda *arguments: (go.set(), join(*arguments)))
    with pytest.raises(KeyError), Checkpointer(tmp_path, Peers()) as checkpointer:
        checkpointer.save(2, state(), {})
        raise KeyError
    assert steps_present(tmp_path) == [2]


def test_the_thread_of_a_save_is_on_the_gpu_of_its_rank(tmp_path, monkeypatch):
    chosen = []
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 3)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: chosen.append((threading.current_thread(), device)))
    saved(tmp_path, 1)
    (thread, device), = chosen
    assert device == 3 and thread is not threading.main_thread()


DIES_WHILE_SAVING = textwrap.dedent("""
    import os, signal, sys, pathlib
    from framework.training.checkpoint import checkpointer, folder
    from framework.training.peers import Peers
    import torch
    def die(*arguments, **options): os.kill(os.getpid(), signal.SIGKILL)
    root, module, name = pathlib.Path(sys.argv[1]), *sys.argv[2].split(".")
    saver = checkpointer.Checkpointer(root, Peers(), keep_last=1)
    saver.save(1, {"model.a": torch.ones(3)}, {}, background=False)
    setattr({"checkpointer": checkpointer, "shutil": folder.shutil, "Path": pathlib.Path}[module], name, die)
    saver.save(2, {"model.a": torch.ones(3) * 2}, {}, background=False)
""")


@pytest.mark.parametrize(("where", "survivors"), [
    ("checkpointer.write_state", [1]), ("checkpointer.file_facts", [1]), ("checkpointer.write_manifest", [1]),
    ("Path.rename", [1]), ("shutil.rmtree", [2]),
])
def test_killed_within_a_save_it_leaves_finished_checkpoints_and_temporary_names(tmp_path, where, survivors):
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", DIES_WHILE_SAVING, str(tmp_path), where], env=environment)
    assert done.returncode == -signal.SIGKILL
    assert steps_present(tmp_path) == survivors
    tensors = {"model.a": torch.zeros(3)}
    assert Checkpointer(tmp_path, Peers()).load_newest(tensors).step == survivors[-1]
    assert torch.equal(tensors["model.a"], torch.ones(3) * survivors[-1])
    assert [path.name for path in tmp_path.iterdir()] == [f"step_{step}" for step in survivors]
