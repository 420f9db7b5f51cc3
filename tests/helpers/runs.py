"""Whole runs on a pool's ranks: a tiny recipe, training as `upmix train` does it, what the run wrote."""

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
              "ffn": {"multiplier": 2},
              "moe": {"expansion_rate": 4, "granularity": 2, "load_balance_weight": 0.01, "z_loss_weight": 0.001}},
    "data": {"corpus": "corpus", "seq_len": 16, "batch_size": 8, "validation_fraction": 0.2},
    "optim": {"lr": 1e-2, "warmup_steps": 2, "relative_lr": {"router": {"start": 0.5, "end": 2.0}}},
    "training": {"steps": 6, "eval_every": 3}, "checkpoint": {"every": 2},
}


def write_corpus(folder: Path) -> Path:
    """A new folder of text files."""
    folder.mkdir()
    text = Path(torch.__file__).with_name("functional.py").read_text()
    for number in range(20):
        (folder / f"{number}.txt").write_text(text[1500 * number : 1500 * (number + 1)])
    return folder


def write_recipe(folder: Path, **changes: dict) -> Path:
    """RECIPE, its sections changed by those given, on a corpus beside it; returns its file."""
    changes["data"] = changes.get("data", {}) | {"corpus": str(write_corpus(folder / "corpus"))}
    recipe = {section: fields | changes.get(section, {}) for section, fields in RECIPE.items()}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return folder / "recipe.yaml"


def train_on_rank(recipe: Path, path: Path, overrides: tuple[str, ...], resume: bool, before: tuple | None) -> int:
    """What `upmix train` does on a rank that has joined; `before` is a change to make first: (function, *args)."""
    from framework.recipe import load_recipe
    from framework.training import train

    os.environ["UPMIX_DATA"] = str(recipe.parent / "data")
    with pytest.MonkeyPatch.context() as patch:
        if before is not None:
            before[0](patch, *before[1:])
        return train(load_recipe(str(recipe), overrides), path, resume, torch.device("cpu"))


def run(
    ranks, recipe: Path, path: Path, *overrides: str, resume: bool = False, before: tuple | None = None,
    timeout: float = 120.0,
) -> int:
    """Train on as many ranks as the overrides ask for; the exit code, which all ranks agree on."""
    degrees = [int(each.split("=")[1]) for each in overrides if each.startswith(("parallel.dp_", "parallel.pp="))]
    arguments = recipe, path, overrides, resume, before
    code, = set(ranks.run(math.prod(degrees), train_on_rank, *arguments, timeout=timeout))
    return code


class Whole:
    """Undisturbed runs of a recipe by overrides, each made once."""

    def __init__(self, ranks, recipe: Path) -> None:
        self.ranks, self.recipe = ranks, recipe
        self.made: dict[tuple[str, ...], Path] = {}

    def __call__(self, *overrides: str) -> Path:
        if overrides not in self.made:
            path = self.recipe.parent / "whole" / str(len(self.made))
            assert run(self.ranks, self.recipe, path, *overrides) == 0
            self.made[overrides] = path
        return self.made[overrides]


def all_rows(path: Path) -> list[dict]:
    """Rows of metrics, without what a clock, the machine or the layout decides."""
    measured = ("tokens_per_second", "model_flops_per_second", "memory_bytes", "dispatch_bytes")
    return [{name: value for name, value in json.loads(line).items() if name not in measured}
            for line in (path / "metrics.jsonl").read_text().splitlines()]


def rows(path: Path, kind: str = "train") -> list[dict]:
    """Those of a kind."""
    return [row for row in all_rows(path) if row["kind"] == kind]


def back_to(path: Path, step: int) -> None:
    """As if the run had been killed after a step's checkpoint."""
    for checkpoint in (path / "checkpoints").glob("step_*"):
        if int(checkpoint.name.removeprefix("step_")) > step:
            shutil.rmtree(checkpoint)
    (path / "DONE").unlink()


def cut(path: Path, to: Path, step: int) -> Path:
    """A copy of a run as `back_to` leaves it."""
    shutil.copytree(path, to)
    back_to(to, step)
    return to


def poison(patch: pytest.MonkeyPatch, steps: list[int], name: str, rank: int) -> None:
    """A NaN in one gradient on one rank in some steps."""
    from framework.training.trainer import Trainer

    original = Trainer._forward_backward

    def poisoned(self, current):
        loss = original(self, current)
        if current in steps and torch.distributed.get_rank() == rank:
            self.model.get_parameter(name).grad.to_local().view(-1)[0] = float("nan")
        return loss

    patch.setattr(Trainer, "_forward_backward", poisoned)
