"""Who may use a run folder, and what a resume may change."""

import fcntl
import json
import multiprocessing
import os
import re
import signal
from pathlib import Path

import pytest
import yaml

from framework.errors import UserError
from framework.recipe import load_recipe
from framework.training import Admission, admit
from framework.training.lock import lock_folder
from framework.training.run_folder import enter

RECIPE = {
    "model": {"pattern": "(*E)x2", "d_model": 32, "vocab_size": 64, "attention": {"num_heads": 2},
              "ffn": {"d_ff": 64}, "moe": {"expansion_rate": 4, "granularity": 2}},
    "data": {"corpus": "text", "batch_size": 8}, "training": {"steps": 10},
}


@pytest.fixture
def recipe(tmp_path):
    """Loads the recipe with overrides."""
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(RECIPE))
    return lambda *overrides: load_recipe(str(tmp_path / "recipe.yaml"), overrides)


@pytest.fixture
def run(tmp_path, recipe):
    """A run that was started and left."""
    admission, lock = enter(tmp_path / "runs" / "a", recipe(), resume=False)
    lock.close()
    assert admission is Admission.FRESH
    return tmp_path / "runs" / "a"


def test_a_new_folder_holds_recipe_origins_and_code(run):
    assert load_recipe(str(run / "recipe.yaml")).recipe.model.d_model == 32
    origins = json.loads((run / "origins.json").read_text())
    assert re.search(r"recipe\.yaml:\d+$", origins["data.batch_size"])
    assert origins["optim.lr"] == "default"
    assert (run / "code" / "commit").read_text().strip() and (run / "code" / "diff").exists()


def test_an_existing_folder_is_refused_without_resume(run, recipe):
    for ask in (admit, enter):
        with pytest.raises(UserError, match="--resume"):
            ask(run, recipe(), False)


@pytest.mark.parametrize("change", ["parallel.dp_shard=2", "checkpoint.every=3", "checkpoint.keep_last=1",
                                    "data.micro_batch_size=2", "training.steps=12"])
def test_what_a_resume_may_change(run, recipe, change):
    assert admit(run, recipe(change), True) is Admission.RESUMED
    admission, lock = enter(run, recipe(change), True)
    lock.close()
    key, value = change.split("=")
    section, field = key.split(".")
    stored = load_recipe(str(run / "recipe.yaml")).recipe
    assert admission is Admission.RESUMED and str(getattr(getattr(stored, section), field)) == value


@pytest.mark.parametrize(("change", "key"), [
    ("optim.lr=0.5", "optim.lr"), ("model.d_model=64", "model.d_model"), ("data.batch_size=4", "data.batch_size"),
    ("training.seed=1", "training.seed"), ("data.seq_len=8", "data.seq_len"), ("training.dtype=bfloat16", "dtype"),
    ("optim.relative_lr.router.start=2", "optim.relative_lr.router"), ("model.moe.granularity=4", "granularity"),
])
def test_any_other_change_is_refused_by_name(run, recipe, change, key):
    before = (run / "recipe.yaml").read_text()
    for ask in (admit, enter):
        with pytest.raises(UserError, match=key):
            ask(run, recipe(change), True)
    assert (run / "recipe.yaml").read_text() == before


def test_done_is_done_unless_steps_are_added(run, recipe):
    (run / "DONE").write_text("10\n")
    assert admit(run, recipe(), True) is Admission.FINISHED
    assert admit(run, recipe("training.steps=9"), True) is Admission.FINISHED
    admission, lock = enter(run, recipe("training.steps=11"), True)
    lock.close()
    assert admission is Admission.RESUMED and not (run / "DONE").exists()


def test_a_folder_that_a_kill_left_without_recipe_starts_afresh(tmp_path, recipe):
    (tmp_path / "b").mkdir()
    admission, lock = enter(tmp_path / "b", recipe(), True)
    lock.close()
    assert admission is Admission.FRESH and (tmp_path / "b" / "recipe.yaml").exists()


@pytest.mark.parametrize("resume", [True, False])
def test_a_folder_with_what_was_submitted_alone_is_fresh(tmp_path, recipe, resume):
    path = tmp_path / "b"
    (path / "job").mkdir(parents=True)
    (path / "job" / "script").touch()
    (path / ".lock").touch()
    admission, lock = enter(path, recipe(), resume)
    lock.close()
    assert admission is Admission.FRESH and (path / "recipe.yaml").exists() and (path / "job" / "script").exists()
    for ask in (admit, enter):
        with pytest.raises(UserError, match="--resume"):
            ask(path, recipe(), False)


@pytest.mark.parametrize("resume", [True, False])
def test_a_submitted_folder_that_another_process_began_is_no_fresh_one(tmp_path, recipe, monkeypatch, resume):
    (tmp_path / "b" / "job").mkdir(parents=True)

    def another_is_faster(path):
        (path / "recipe.yaml").write_text((tmp_path / "recipe.yaml").read_text())
        return lock_folder(path)

    monkeypatch.setattr("framework.training.run_folder.lock_folder", another_is_faster)
    if resume:
        admission, lock = enter(tmp_path / "b", recipe(), True)
        lock.close()
        assert admission is Admission.RESUMED
    else:
        with pytest.raises(UserError, match="the run folder exists"):
            enter(tmp_path / "b", recipe(), False)


@pytest.mark.parametrize("resume", [True, False])
def test_what_is_there_and_no_run_is_refused(tmp_path, recipe, resume):
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "file").touch()
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "job").touch()
    for path in (tmp_path / "b" / "file", tmp_path / "b", tmp_path / "c"):
        with pytest.raises(UserError, match="no run"):
            admit(path, recipe(), resume)


def test_a_folder_that_the_system_refuses_to_root_too_is_one_line(recipe):
    with pytest.raises(UserError, match="/proc/none/run: .*; allowed: another --runs-dir"):
        enter(Path("/proc/none/run"), recipe(), False)


def test_a_damaged_end_is_one_line(run, recipe):
    (run / "DONE").write_text("x")
    with pytest.raises(UserError, match="DONE: damaged"):
        admit(run, recipe(), True)


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path, recipe):
    (tmp_path / "file").write_text("")
    for ask in (admit, enter):
        with pytest.raises(UserError, match="file/deep/run"):
            ask(tmp_path / "file" / "deep" / "run", recipe(), False)


def _hold(folder, ready):
    lock = lock_folder(folder)
    ready.set()
    signal.pause()
    lock.close()


def test_a_lock_is_exclusive_and_dies_with_its_holder(tmp_path, monkeypatch):
    monkeypatch.setattr("framework.training.lock.PATIENCE_SECONDS", 0.2)
    context = multiprocessing.get_context("forkserver")
    ready = context.Event()
    holder = context.Process(target=_hold, args=(tmp_path, ready))
    holder.start()
    assert ready.wait(30)
    with pytest.raises(UserError, match="another process"):
        lock_folder(tmp_path)
    os.kill(holder.pid, signal.SIGKILL)
    holder.join()
    lock = lock_folder(tmp_path)
    with pytest.raises(BlockingIOError), (tmp_path / ".lock").open() as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    lock.close()
