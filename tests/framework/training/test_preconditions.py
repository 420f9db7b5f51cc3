"""What is refused before training, and how ranks wait for each other around it."""

import contextlib
import datetime
import importlib.util
import json
import signal
from types import SimpleNamespace

import pytest
import torch
import yaml

from framework.cli.train import _be_a_rank
from framework.errors import UserError
from framework.recipe import load_recipe
from framework.training import data_state, setup, start
from framework.training.peers import Peers
from framework.training.preconditions import mesh_sizes, require_packages
from framework.training.shares import forward_size
from parallel import Place

RECIPE = {
    "model": {"pattern": "*-", "d_model": 16, "vocab_size": 64, "attention": {"num_heads": 2}, "ffn": {"d_ff": 16}},
    "data": {"corpus": "text", "batch_size": 8}, "training": {"steps": 1},
}


@pytest.fixture
def recipe(tmp_path):
    """Loads the recipe with overrides."""
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(RECIPE))
    return lambda *overrides: load_recipe(str(tmp_path / "recipe.yaml"), overrides)


@pytest.mark.parametrize("change", ["parallel.dp_shard=2", "training.wandb=true", "parallel.engine=deepspeed"])
def test_what_cannot_run_here_leaves_no_folder(recipe, tmp_path, monkeypatch, change):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="needs"):
        start.train(recipe(change), tmp_path / "runs" / "a", False, torch.device("cpu"))
    assert not (tmp_path / "runs").exists()


def test_refused_data_leaves_no_folder(recipe, tmp_path):
    with pytest.raises(UserError, match="no such file"):
        start.train(recipe(), tmp_path / "runs" / "a", False, torch.device("cpu"))
    assert not (tmp_path / "runs").exists()


def test_packages_are_asked_for_only_where_needed(recipe, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    require_packages(recipe().recipe)


def test_ranks_that_were_asked_to_stop_leave_together(recipe, tmp_path, monkeypatch):
    calls = []
    for step in ("open_data_together", "require_same_data", "hold_data"):
        monkeypatch.setattr(start, step, lambda *parts: None)
    monkeypatch.setattr(start, "Run", lambda *parts: SimpleNamespace(train=lambda: calls.append("train") or 15))
    monkeypatch.setattr(Peers, "barrier", lambda peers: calls.append("barrier"))
    assert start.train(recipe(), tmp_path / "a", False, torch.device("cpu")) == 128 + signal.SIGTERM
    assert calls == ["train", "barrier"]


@pytest.mark.parametrize(("change", "shortest"), [
    ("training.stall_minutes=100", datetime.timedelta(minutes=101)),
    ("training.stall_minutes=null", datetime.timedelta(days=7)),
])
def test_ranks_wait_for_others_longer_than_the_watchdog_and_a_bug_stays_a_bug(
    recipe, tmp_path, monkeypatch, change, shortest
):
    waits = []

    def join(place, device, timeout):
        waits.append(timeout)
        return contextlib.nullcontext()

    def bug(*arguments):
        raise ValueError("a bug")

    monkeypatch.setattr("parallel.world.join", join)
    monkeypatch.setattr(start, "train", bug)
    with pytest.raises(ValueError, match="a bug") as raised:
        _be_a_rank(Place(), recipe(change), tmp_path / "a", False)
    assert not isinstance(raised.value, UserError) and waits[0] > shortest


def test_a_model_that_cannot_be_split_is_the_users_mistake(recipe, monkeypatch):
    def refuse(*arguments, **options):
        raise ValueError("ep=3 must divide the 8 experts")

    monkeypatch.setattr(setup, "parallelize", refuse)
    with pytest.raises(UserError, match="ep=3"):
        setup.build_model(recipe(), None, torch.device("cpu"))


def test_a_forward_is_a_micro_batch_or_a_ranks_share(recipe):
    assert forward_size(recipe("data.micro_batch_size=2").recipe.data, 1) == 2
    layout = mesh_sizes(recipe("parallel.dp_replicate=2", "parallel.dp_shard=2").recipe.parallel)
    assert forward_size(recipe().recipe.data, layout.batch) == 2


def patience_of_peers() -> float:
    """Seconds that the group of the peers waits."""
    return Peers().group._get_backend(torch.device("cpu")).options._timeout.total_seconds()


def test_peers_wait_for_days(ranks):
    assert min(ranks.run(2, patience_of_peers)) > 86400


def facts(rank: int) -> dict:
    return {"train_tokens": 100 + rank, "tokenizer_sha256": "a"}


def hold_different_data() -> str:
    peers = Peers()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data_state, "_facts", facts)
        data_state.require_same_data(0, peers)
        with pytest.raises(UserError) as raised:
            data_state.require_same_data(peers.rank, peers)
    return str(raised.value)


def test_data_that_differ_between_machines_are_refused_on_every_rank(ranks):
    said, = set(ranks.run(2, hold_different_data))
    assert "rank 1 has other data than rank 0 (train_tokens is 101, on rank 0 100)" in said


def test_data_other_than_the_runs_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(data_state, "_facts", facts)
    with pytest.raises(UserError, match="missing or damaged"):
        data_state.refuse_other_data(0, tmp_path)
    (tmp_path / "data.json").write_text(json.dumps(facts(0)))
    data_state.refuse_other_data(0, tmp_path)
    with pytest.raises(UserError, match="train_tokens was 100, now 101"):
        data_state.refuse_other_data(1, tmp_path)
