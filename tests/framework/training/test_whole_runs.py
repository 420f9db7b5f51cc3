"""Whole runs on the pool's ranks: layouts, kills, resumes, stops, bad gradients, against undisturbed ones."""

import json
import math
import os
import shutil
import signal
from pathlib import Path

import pytest
import torch

from tests.helpers.runs import Whole, cut, poison, rows, run, train_on_rank, write_recipe


def state(path: Path, step: int) -> dict[str, torch.Tensor]:
    """Every tensor of a checkpoint, whole."""
    from torch.distributed.checkpoint.default_planner import _EmptyStateDictLoadPlanner
    from torch.distributed.checkpoint.state_dict_loader import _load_state_dict

    from framework.training.checkpoint.safe_reader import SafeReader

    tensors: dict[str, torch.Tensor] = {}
    reader = SafeReader(path / "checkpoints" / f"step_{step}" / "state")
    _load_state_dict(tensors, reader, planner=_EmptyStateDictLoadPlanner(), no_dist=True)
    return tensors


def die_at(patch, module: str, name: str, call: int, rank: int = 0, number: int = signal.SIGKILL) -> None:
    """SIGKILL the rank, or send it another signal, when a function is called for the `call`-th time."""
    import importlib

    owner = importlib.import_module(module)
    *path, name = name.split(".")
    for part in path:
        owner = getattr(owner, part)
    original, calls = getattr(owner, name), [0]

    def counted(*args, **kwargs):
        calls[0] += 1
        if calls[0] == call and torch.distributed.get_rank() == rank:
            os.kill(os.getpid(), number)
        return original(*args, **kwargs)

    patch.setattr(owner, name, counted)


def signal_at(patch, step: int, rank: int, number: int) -> None:
    """A stop signal for one rank, as its step begins."""
    from framework.training.trainer import Trainer

    original = Trainer._forward_backward

    def signalled(self, current):
        if current == step and torch.distributed.get_rank() == rank:
            os.kill(os.getpid(), number)
        return original(self, current)

    patch.setattr(Trainer, "_forward_backward", signalled)


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    """The recipe's file; its corpus is prepared by the first run."""
    return write_recipe(tmp_path_factory.mktemp("tiny"), training={"steps": 8, "eval_every": 4})


@pytest.fixture(scope="module")
def whole(ranks, recipe):
    """Undisturbed runs by layout, each made once."""
    return Whole(ranks, recipe)


TWO = ("parallel.dp_shard=2", "parallel.ep=2")
LAYOUTS = {
    "two data-parallel ranks": ("parallel.dp_shard=2",), "two expert-parallel ranks": TWO,
    "two replicas": ("parallel.dp_replicate=2",),
    "micro-batches on two ranks": (*TWO, "data.micro_batch_size=1"),
}


def assert_same(path: Path, reference: Path, last_step: int = 8) -> None:
    """Bit-identical weights, optimizer state, losses, gradient norms and learning rates."""
    for kind in ("train", "eval", "experts"):
        assert rows(path, kind) == rows(reference, kind)
    ours, theirs = state(path, last_step), state(reference, last_step)
    assert ours.keys() == theirs.keys() and len(ours) > 20
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []


def test_a_run_folder_is_complete(whole):
    path = whole()
    assert {each.name for each in path.iterdir()} >= {
        "recipe.yaml", "origins.json", "metrics.jsonl", "tensorboard", "checkpoints", "loss.png", "log", "code", "DONE",
        "tokenizer.model"}
    assert [row["step"] for row in rows(path)] == list(range(1, 9))
    assert [row["tokens"] for row in rows(path)] == [128 * step for step in range(1, 9)]
    assert [row["step"] for row in rows(path, "eval")] == [4, 8]
    assert not (path / "stacks").exists()
    losses = [row["loss"] for row in rows(path)]
    assert losses[-1] < losses[0] - 0.5 and abs(losses[0] - math.log(384)) < 1
    assert all(0 < row["z_loss"] < 0.1 and row["expert_load_max"] >= 1 >= row["expert_load_min"] for row in rows(path))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_one_ranks_run(whole, layout):
    for kind in ("train", "eval"):
        for ours, theirs in zip(rows(whole(*LAYOUTS[layout]), kind), rows(whole(), kind), strict=True):
            assert ours.pop("kind") == theirs.pop("kind")
            assert ours == pytest.approx(theirs, rel=2e-4)


KILLS = {
    "before the first checkpoint": ("framework.training.trainer", "Trainer._update", 2, 0),
    "in a step": ("framework.training.trainer", "Trainer._update", 6, 1),
    "in the middle of a save": ("framework.training.checkpoint.checkpointer", "file_facts", 4, 0),
}


@pytest.mark.parametrize("moment", KILLS)
def test_killed_and_resumed_it_ends_as_if_nothing_had_happened(ranks, recipe, whole, tmp_path, moment):
    from parallel.pool import RankError

    overrides = (*TWO, "checkpoint.keep_last=2")
    with pytest.raises(RankError, match="without a word|Connection|peer"):
        run(ranks, recipe, tmp_path / "cut", *overrides, before=(die_at, *KILLS[moment]))
    assert not (tmp_path / "cut" / "DONE").exists()
    assert run(ranks, recipe, tmp_path / "cut", *overrides, resume=True) == 0
    assert_same(tmp_path / "cut", whole(*TWO))


def test_killed_after_the_last_save_only_the_end_is_made_good(ranks, recipe, whole, tmp_path):
    path = Path(shutil.copytree(whole(*TWO), tmp_path / "ended"))
    for name in ("DONE", "loss.png"):
        (path / name).unlink()
    assert run(ranks, recipe, path, *TWO, resume=True) == 0
    assert (path / "DONE").exists() and (path / "loss.png").exists()
    assert_same(path, whole(*TWO))


@pytest.mark.parametrize(("first", "then"), [
    (TWO, ("data.micro_batch_size=4",)),
    ((), ("parallel.dp_replicate=2", "parallel.dp_shard=2", "parallel.ep=2")),
])
def test_a_resume_on_another_layout_goes_on_alike(ranks, recipe, whole, tmp_path, first, then):
    path = cut(whole(*first), tmp_path / "moved", 4)
    assert run(ranks, recipe, path, *then, resume=True) == 0
    for ours, theirs in zip(rows(path), rows(whole(*first)), strict=True):
        assert ours.pop("kind") == theirs.pop("kind")
        assert ours == (pytest.approx(theirs, rel=2e-4) if ours["step"] > 4 else theirs)


def test_a_stop_signal_to_one_rank_ends_all_with_a_checkpoint(ranks, recipe, whole, tmp_path):
    path, number = tmp_path / "stopped", signal.SIGUSR1
    assert run(ranks, recipe, path, *TWO, before=(signal_at, 3, 1, number)) == 128 + number
    assert [row["step"] for row in rows(path)] == [1, 2, 3]
    assert (path / "checkpoints" / "step_3" / "manifest.json").exists() and not (path / "DONE").exists()
    assert run(ranks, recipe, path, *TWO, resume=True) == 0
    assert_same(path, whole(*TWO))


def signal_in_last_save(patch, number: int) -> None:
    """A signal while training waits for its last checkpoint."""
    from framework.training.checkpoint import Checkpointer

    original = Checkpointer.__exit__
    patch.setattr(Checkpointer, "__exit__", lambda *details: (os.kill(os.getpid(), number), original(*details))[1])


def test_a_signal_during_the_last_save_does_not_lose_it(ranks, recipe, tmp_path):
    path = tmp_path / "signalled"
    before = (signal_in_last_save, signal.SIGTERM)
    assert run(ranks, recipe, path, "training.steps=1", before=before) == 0
    assert (path / "checkpoints" / "step_1" / "manifest.json").exists() and (path / "DONE").exists()


def test_a_resume_without_a_good_checkpoint_is_refused_and_metrics_stay(ranks, recipe, whole, tmp_path):
    from parallel.pool import RankError

    path = Path(shutil.copytree(whole(), tmp_path / "harmed"))
    (path / "DONE").unlink()
    for manifest in path.glob("checkpoints/*/manifest.json"):
        manifest.write_text("{}")
    before = (path / "metrics.jsonl").read_bytes()
    with pytest.raises(RankError, match="UserError: .*none of the checkpoints is good: step_2, step_4"):
        run(ranks, recipe, path, resume=True)
    assert (path / "metrics.jsonl").read_bytes() == before and (path / "checkpoints" / "step_8").exists()


BAD = "layers.1.block.experts.up"


def test_a_step_with_a_bad_gradient_is_skipped_and_counted(ranks, recipe, whole, tmp_path):
    path = tmp_path / "poisoned"
    assert run(ranks, recipe, path, *TWO, "checkpoint.every=1", before=(poison, [3, 5], BAD, 1)) == 0
    assert [row["skipped_steps"] for row in rows(path)] == [0, 0, 1, 1, 2, 2, 2, 2]
    assert [row["grad_norm"] is None for row in rows(path)] == [step in (3, 5) for step in range(1, 9)]
    before, after = state(path, 2), state(path, 3)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert f"step 3: the gradient of {BAD} is not finite" in (path / "log").read_text()
    assert all(math.isfinite(row["loss"]) for row in rows(path))


def test_too_many_bad_steps_in_a_row_stop_it(ranks, recipe, tmp_path):
    from parallel.pool import RankError

    with pytest.raises(RankError, match=f"TrainingFailure: 2 steps in a row up to step 6 .* the gradient of {BAD}"):
        run(ranks, recipe, tmp_path / "a", *TWO, "training.max_bad_steps=2", resume=False,
            before=(poison, [3, 5, 6], BAD, 0))


def test_bfloat16_is_near_float32_and_keeps_float32_weights(whole):
    path = whole(*TWO, "training.dtype=bfloat16")
    for ours, theirs in zip(rows(path), rows(whole()), strict=True):
        assert ours["loss"] != theirs["loss"]
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=0.05)
    assert {tensor.dtype for tensor in state(path, 8).values()} == {torch.float32}


def test_loss_free_balancing_moves_its_biases_alike_on_every_layout(whole):
    change = ("model.moe.router=sigmoid", "model.moe.selection_bias_rate=0.01", "model.moe.load_balance_weight=0")
    biases = [{name: tensor for name, tensor in state(whole(*layout, *change), 8).items() if "selection_bias" in name}
              for layout in ((), TWO)]
    assert len(biases[0]) == 2
    for name, bias_E in biases[0].items():
        assert 0.009 < bias_E.abs().max() < 0.081 and torch.allclose(bias_E, biases[1][name])


def test_isolated_documents_a_batch_ramp_and_a_trace_of_two_steps(whole):
    path = whole("data.isolate_documents=true", "data.batch_ramp={256: 4}", "training.profile_steps=[2, 3]")
    assert [row["batch_size"] for row in rows(path)] == [4] * 4 + [8] * 4
    assert [row["tokens"] for row in rows(path)][-1] == 4 * 64 + 4 * 128
    assert all(math.isfinite(row["loss"]) for row in rows(path)) and rows(path, "eval")[-1]["val_loss"] > 0
    trace = json.loads((path / "profile" / "rank_0.json").read_text())
    updates = [event for event in trace["traceEvents"] if event.get("name") == "Optimizer.step#ShardedAdamW.step"]
    assert len({event["ts"] for event in updates}) == 2


def test_a_run_read_back_evaluates_as_it_did(whole, monkeypatch, recipe):
    from framework.data import open_data
    from framework.training import evaluate, load_run

    monkeypatch.setenv("UPMIX_DATA", str(recipe.parent / "data"))
    for step, row in zip((4, 8), rows(whole(*TWO), "eval"), strict=True):
        found = load_run(whole(*TWO), step)
        settings = found.loaded.recipe
        data = open_data(settings.data, settings.model.vocab_size, settings.training.seed, progress=False)
        measured = evaluate(found.model, data.validation, 3, False, torch.device("cpu"))
        assert measured.val_loss == pytest.approx(row["val_loss"], rel=1e-6)
        assert measured.val_bits_per_byte == pytest.approx(row["val_bits_per_byte"], rel=1e-6)
        assert found.tokenizer.decode(found.tokenizer.encode("def f(x):\n")) == "def f(x):\n"


def test_a_wrong_number_of_ranks_is_one_line(ranks, recipe, tmp_path):
    from parallel.pool import RankError

    with pytest.raises(RankError, match="UserError: 1 ranks were started; allowed: 2, which the recipe's layout needs"):
        ranks.run(1, train_on_rank, recipe, tmp_path / "a", TWO, False, None)
    assert not (tmp_path / "a").exists()


def test_a_resume_on_other_text_is_refused(ranks, tmp_path):
    from parallel.pool import RankError

    recipe = write_recipe(tmp_path)
    assert run(ranks, recipe, tmp_path / "run", "training.steps=1") == 0
    with (tmp_path / "corpus" / "3.txt").open("a") as file:
        file.write("one more line\n")
    with pytest.raises(RankError, match="started on other data"):
        run(ranks, recipe, tmp_path / "run", "training.steps=2", resume=True)
