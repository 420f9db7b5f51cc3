"""Whole runs in a pipeline: one rank's losses, evaluation and use of experts; checkpoints to and from one rank."""

import json
import math
import os
import shutil
from pathlib import Path

import pytest
import torch
import yaml

RECIPE = {
    "model": {"pattern": "(*E)x2", "d_model": 32, "vocab_size": 384, "attention": {"num_heads": 2},
              "ffn": {"multiplier": 2}, "tie_embeddings": True,
              "moe": {"expansion_rate": 4, "granularity": 2, "load_balance_weight": 0.01, "router": "sigmoid",
                      "selection_bias_rate": 0.01}},
    "data": {"corpus": "corpus", "seq_len": 16, "batch_size": 16, "micro_batch_size": 2, "validation_fraction": 0.2,
             "batch_ramp": {256: 8}, "isolate_documents": True},
    "optim": {"lr": 1e-2, "warmup_steps": 2}, "training": {"steps": 6, "eval_every": 3}, "checkpoint": {"every": 2},
}
ONE = []
LAYOUTS = {
    "pp2": ["parallel.pp=2"],
    "pp2-interleaved": ["parallel.pp=2", "parallel.pp_schedule=interleaved"],
    "pp2-zb": ["parallel.pp=2", "parallel.pp_schedule=zero_bubble"],
    "pp2xep2": ["parallel.pp=2", "parallel.dp_shard=2", "parallel.ep=2"],
}


def train_on_rank(recipe: Path, path: Path, overrides: list[str], resume: bool, poisoned: str | None = None) -> int:
    from framework.recipe import load_recipe
    from framework.training import train
    from framework.training.trainer import Trainer

    os.environ["UPMIX_DATA"] = str(recipe.parent / "data")
    with pytest.MonkeyPatch.context() as patch:
        if poisoned is not None:
            original = Trainer._forward_backward

            def poison(self, step):
                loss = original(self, step)
                parameter = dict(self.model.named_parameters()).get(poisoned)
                if step == 2 and parameter is not None:
                    parameter.grad.to_local().view(-1)[0] = float("nan")
                return loss

            patch.setattr(Trainer, "_forward_backward", poison)
        return train(load_recipe(str(recipe), overrides), path, resume, torch.device("cpu"))


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pipeline")
    (folder / "corpus").mkdir()
    text = Path(torch.__file__).with_name("functional.py").read_text()
    for number in range(20):
        (folder / "corpus" / f"{number}.txt").write_text(text[2000 * number : 2000 * (number + 1)])
    (folder / "recipe.yaml").write_text(yaml.safe_dump(
        RECIPE | {"data": RECIPE["data"] | {"corpus": str(folder / "corpus")}}
    ))
    return folder / "recipe.yaml"


@pytest.fixture(scope="module")
def one(ranks, recipe):
    """A run on one rank."""
    run(ranks, recipe, recipe.parent / "one", ONE)
    return recipe.parent / "one"


def run(ranks, recipe: Path, path: Path, layout: list[str], resume: bool = False, *more) -> None:
    degrees = [int(each.split("=")[1]) for each in layout if each.startswith(("parallel.dp_", "parallel.pp="))]
    assert set(ranks.run(math.prod(degrees), train_on_rank, recipe, path, layout, resume, *more)) == {0}


def rows(path: Path, kind: str) -> list[dict]:
    found = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    return [row for row in found if row["kind"] == kind]


def assert_same_run(got: Path, expected: Path) -> None:
    for kind, names in (("train", ("loss", "grad_norm", "load_balance_loss", "expert_entropy", "tokens")),
                        ("eval", ("val_loss", "val_bits_per_byte"))):
        mine, theirs = rows(got, kind), rows(expected, kind)
        assert [row["step"] for row in mine] == [row["step"] for row in theirs] != []
        for row, reference in zip(mine, theirs, strict=True):
            for name in names:
                assert row[name] == pytest.approx(reference[name], rel=1e-4), (kind, row["step"], name)
    mine, theirs = rows(got, "experts"), rows(expected, "experts")
    for row, reference in zip(mine, theirs, strict=True):
        assert list(row["load"]) == list(reference["load"]) == ["layers.1", "layers.3"]
        for layer, shares in reference["load"].items():
            assert row["load"][layer] == pytest.approx(shares, abs=0.02)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_run_in_a_pipeline_is_the_run_on_one_rank(ranks, recipe, one, tmp_path, layout):
    run(ranks, recipe, tmp_path / "run", LAYOUTS[layout])
    assert_same_run(tmp_path / "run", one)
    shares = [row["bubble_share"] for row in rows(tmp_path / "run", "train")]
    if layout == "pp2":  # (p - 1) / (m + p - 1), of 4 and then 8 micro-batches
        assert shares == pytest.approx([1 / 5] * 2 + [1 / 9] * 4)
    assert all(0 < share < 0.4 for share in shares)


def test_checkpoints_go_from_a_pipeline_to_one_rank_and_back(ranks, recipe, one, tmp_path):
    path = tmp_path / "run"
    run(ranks, recipe, path, LAYOUTS["pp2"])
    back_to(path, 2)
    run(ranks, recipe, path, ONE, True)
    assert_same_run(path, one)
    back_to(path, 4)
    run(ranks, recipe, path, LAYOUTS["pp2-interleaved"], True)
    assert_same_run(path, one)


def back_to(path: Path, step: int) -> None:
    """As if the run had been killed after a step's checkpoint."""
    for checkpoint in (path / "checkpoints").iterdir():
        if int(checkpoint.name.removeprefix("step_")) > step:
            shutil.rmtree(checkpoint)
    (path / "DONE").unlink()


def test_a_bad_gradient_of_the_last_stage_is_named_and_skipped_on_every_rank(ranks, recipe, tmp_path):
    name = "layers.2.block.q.weight"
    run(ranks, recipe, tmp_path / "run", [*LAYOUTS["pp2"], "training.steps=2"], False, name)
    assert f"step 2: the gradient of {name} is not finite" in (tmp_path / "run" / "log").read_text()
    assert [row["skipped_steps"] for row in rows(tmp_path / "run", "train")] == [0, 1]
