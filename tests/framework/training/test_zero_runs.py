"""Whole runs by DeepSpeed's ZeRO: one rank's losses, evaluation and use of experts; checkpoints to and from FSDP."""

import json
import math
import os
import shutil
from pathlib import Path

import pytest
import torch
import yaml

pytest.importorskip("deepspeed", reason="ZeRO needs the extra `zero`")

RECIPE = {
    "model": {"pattern": "MEmE*E", "d_model": 32, "vocab_size": 384, "attention": {"num_heads": 2},
              "ffn": {"multiplier": 2}, "tie_embeddings": True,
              "moe": {"expansion_rate": 4, "granularity": 2, "load_balance_weight": 0.01, "z_loss_weight": 0.001,
                      "router": "sigmoid", "selection_bias_rate": 0.01}},
    "data": {"corpus": "corpus", "seq_len": 16, "batch_size": 8, "micro_batch_size": 2, "validation_fraction": 0.2,
             "batch_ramp": {256: 4}},
    "optim": {"lr": 1e-2, "warmup_steps": 2, "relative_lr": {"router": {"start": 0.5, "end": 2.0}}},
    "training": {"steps": 6, "eval_every": 3}, "checkpoint": {"every": 2},
}
ONE = ()
FSDP = ("parallel.dp_shard=2",)
ZERO1, ZERO2, ZERO3 = ((*FSDP, "parallel.engine=deepspeed", f"parallel.zero_stage={stage}") for stage in (1, 2, 3))
LAYOUTS = {
    "stage 1": ZERO1, "stage 2, whole shares": (*ZERO2, "data.micro_batch_size=null"), "stage 3": ZERO3,
    "stage 1, replicas": ("parallel.dp_replicate=2", *ZERO1[1:]),
    "stage 2 offloaded": (*ZERO2, "parallel.offload=cpu"), "stage 3 offloaded": (*ZERO3, "parallel.offload=cpu"),
    "stage 3 on one rank": ZERO3[1:], "stage 3, recomputed": (*ZERO3, "training.recompute=full"),
}


def train_on_rank(recipe: Path, path: Path, overrides: list[str], resume: bool, bad_step: int | None) -> int:
    """What `upmix train` does on a rank that has joined; in a bad step the last rank's loss is NaN."""
    import torch.distributed as dist

    from framework.recipe import load_recipe, require_runnable
    from framework.training import train
    from framework.training.trainer import Trainer
    from parallel.zero import Zero

    os.environ["UPMIX_DATA"] = str(recipe.parent / "data")
    loaded = load_recipe(str(recipe), overrides)
    require_runnable(loaded)
    with pytest.MonkeyPatch.context() as patch:
        if bad_step is not None and dist.get_rank() == dist.get_world_size() - 1:
            now, step, backward = [], Trainer.step, Zero.backward
            patch.setattr(Trainer, "step", lambda self, number, request: (now.append(number),
                                                                          step(self, number, request))[1])
            patch.setattr(Zero, "backward", lambda self, share, last: backward(
                self, share * (torch.nan if now[-1] == bad_step else 1.0), last))
        return train(loaded, path, resume, torch.device("cpu"))


def run(ranks, recipe: Path, path: Path, layout: tuple[str, ...], resume: bool = False, bad_step: int | None = None):
    degrees = [int(each.split("=")[1]) for each in layout if each.startswith("parallel.dp_")]
    codes = ranks.run(math.prod(degrees), train_on_rank, recipe, path, list(layout), resume, bad_step, timeout=120)
    assert set(codes) == {0}


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    folder = tmp_path_factory.mktemp("zero")
    (folder / "corpus").mkdir()
    text = Path(torch.__file__).with_name("functional.py").read_text()
    for number in range(20):
        (folder / "corpus" / f"{number}.txt").write_text(text[2000 * number : 2000 * (number + 1)])
    (folder / "recipe.yaml").write_text(yaml.safe_dump(
        RECIPE | {"data": RECIPE["data"] | {"corpus": str(folder / "corpus")}}
    ))
    return folder / "recipe.yaml"


@pytest.fixture(scope="module")
def whole(ranks, recipe):
    """Undisturbed runs by layout, each made once."""
    made = {}

    def make(*layout: str) -> Path:
        if layout not in made:
            made[layout] = recipe.parent / "whole" / str(len(made))
            run(ranks, recipe, made[layout], layout)
        return made[layout]

    return make


def rows(path: Path) -> list[dict]:
    """Rows of metrics, without what a clock or the machine decides."""
    measured = ("tokens_per_second", "model_flops_per_second", "memory_bytes")
    return [{name: value for name, value in json.loads(line).items() if name not in measured}
            for line in (path / "metrics.jsonl").read_text().splitlines()]


def assert_near(path: Path, reference: Path, rel: float = 1e-5) -> None:
    """The losses within rel; what is the difference of such numbers, or counts near ties, within more."""
    for ours, theirs in zip(rows(path), rows(reference), strict=True):
        assert ours.keys() == theirs.keys() and ours["kind"] == theirs["kind"]
        for name, value in theirs.items():
            if name in ("loss", "val_loss"):
                assert ours[name] == pytest.approx(value, rel=rel), (ours["step"], name)
            elif isinstance(value, float):
                assert ours[name] == pytest.approx(value, rel=20 * rel), (ours["step"], name)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_mode_gives_one_ranks_run(whole, layout):
    assert_near(whole(*LAYOUTS[layout]), whole(*ONE))


def cut(path: Path, to: Path, last_step: int) -> Path:
    """A copy of a run that ended after `last_step`."""
    shutil.copytree(path, to, dirs_exist_ok=True)
    (to / "DONE").unlink()
    for checkpoint in (to / "checkpoints").glob("step_*"):
        if int(checkpoint.name.removeprefix("step_")) > last_step:
            shutil.rmtree(checkpoint)
    return to


def test_from_fsdp_to_zero_and_back(ranks, recipe, whole, tmp_path):
    path = cut(whole(*FSDP), tmp_path / "a", 2)
    run(ranks, recipe, path, ZERO3, resume=True)
    assert_near(path, whole(*ONE))
    path = cut(path, tmp_path / "b", 4)
    run(ranks, recipe, path, FSDP, resume=True)
    assert_near(path, whole(*ONE))


def test_from_offloaded_to_one_rank_and_to_another_stage(ranks, recipe, whole, tmp_path):
    path = cut(whole(*LAYOUTS["stage 2 offloaded"]), tmp_path / "a", 2)
    run(ranks, recipe, path, ONE, resume=True)
    assert_near(path, whole(*ONE))
    path = cut(path, tmp_path / "b", 4)
    run(ranks, recipe, path, ZERO1, resume=True)
    assert_near(path, whole(*ONE))


@pytest.mark.parametrize("layout", [ZERO2, ZERO3])
def test_on_the_same_layout_it_resumes_bit_for_bit(ranks, recipe, whole, tmp_path, layout):
    path = cut(whole(*layout), tmp_path / "a", 2)
    run(ranks, recipe, path, layout, resume=True)
    assert rows(path) == rows(whole(*layout))


def test_bfloat16_is_near_float32(whole):
    low = whole(*ZERO3, "training.dtype=bfloat16")
    for ours, theirs in zip(rows(low), rows(whole(*ONE)), strict=True):
        for name in {"loss", "val_loss"} & ours.keys():
            assert ours[name] != theirs[name] and ours[name] == pytest.approx(theirs[name], rel=0.03)


def test_a_loss_that_is_not_finite_skips_the_step(ranks, recipe, tmp_path):
    run(ranks, recipe, tmp_path / "a", ZERO3, bad_step=2)
    train = [row for row in rows(tmp_path / "a") if row["kind"] == "train"]
    assert [row["skipped_steps"] for row in train] == [0, 1, 1, 1, 1, 1]
    assert [row["grad_norm"] is None for row in train] == [False, True, False, False, False, False]
    assert "step 2: the loss or a gradient is not finite" in (tmp_path / "a" / "log").read_text()
    assert all(math.isfinite(row["loss"]) for row in train)
