"""Dense and upcycled models in one process, and upcycling on a pool's ranks."""

import math
import os
from pathlib import Path

import torch
import yaml
from torch import Tensor, nn

from framework.model import Context, LanguageModel, build_language_model
from framework.parametrization import initialize, widths
from framework.parametrization.roles import declarations
from framework.recipe import Loaded, load_recipe
from framework.surgery import Options, Source, prepare
from framework.surgery.fill import fill_weights
from framework.surgery.plan import make_plan
from framework.surgery.task import Upcycling
from framework.training.checkpoint import checkpoint_folder, load, stored_tensors
from framework.training.peers import Peers

DENSE = {
    "model": {"pattern": "*-", "d_model": 16, "vocab_size": 43, "attention": {"num_heads": 2}, "ffn": {"d_ff": 32},
              "moe": {"num_experts": 8, "top_k": 2, "d_expert": 32}, "mamba": {"d_state": 4, "head_dim": 8}},
    "data": {"corpus": "corpus", "seq_len": 16}, "training": {"steps": 10},
}


class Stored:
    """A checkpoint in memory, which is read as `SourceReader` reads one on disk."""

    def __init__(self, tensors: dict[str, Tensor]) -> None:
        self.stored = tensors

    def parts(self, tensors: dict[str, Tensor]) -> None:
        for name, tensor in tensors.items():
            tensor.copy_(self.stored[name])

    def whole(self, name: str) -> Tensor:
        return self.stored[name]


def recipe(folder: Path, *overrides: str) -> Loaded:
    """DENSE with overrides."""
    path = folder / "dense.yaml"
    path.write_text(yaml.safe_dump(DENSE))
    return load_recipe(str(path), overrides)


def task(folder: Path, dense: list[str], target: list[str], **options) -> Upcycling:
    """From DENSE with some overrides to DENSE with others."""
    return prepare(Source(folder, None, recipe(folder, *dense)), recipe(folder, *target), Options(**options))


def model_of(loaded: Loaded, seed: int = 0) -> LanguageModel:
    """Initialised by the recipe's rule, with weights as large as training makes them, so that activations bend."""
    model = build_language_model(loaded.architecture, widths(loaded.recipe, loaded.architecture))
    initialize(model, loaded.recipe.parametrization.init, seed, widths(loaded.recipe, loaded.architecture))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.5)
    return model


def upcycled(job: Upcycling) -> tuple[LanguageModel, LanguageModel]:
    """The dense model, and the one made of it."""
    dense, new = model_of(job.source.loaded), model_of(job.target, seed=1)
    fill_weights(new, make_plan(job), Stored({f"model.{name}": value.detach() for name, value in named(dense).items()}))
    return dense, new


def named(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: module.get_parameter(local) for name, module, local, _ in declarations(model)}


def tokens(count: int = 64) -> Tensor:
    """[4, count / 4]."""
    return torch.randint(0, 43, (4, count // 4), generator=torch.Generator().manual_seed(7))


def relative_difference(dense: LanguageModel, new: LanguageModel) -> float:
    """Of logits, ||new - dense|| / ||dense||."""
    with torch.no_grad():
        before, after = (model.eval()(tokens(), Context()) for model in (dense, new))
    return float((after - before).norm() / before.norm())


SHARDS = dict(method="granular", scaling="exact", optimizer="carry")
"""Options that leave the model's function as it was, and carry all that can be."""


def target(layout: str, *fields: str) -> tuple[str, ...]:
    """Overrides that make experts of a dense recipe's blocks, on a layout as tp=2,ep=2."""
    return ("model.pattern=(*E)x2", *fields, *(f"parallel.{degree}" for degree in layout.split(",")))


def num_ranks(layout: str) -> int:
    """Of a layout."""
    degrees = dict(degree.split("=") for degree in layout.split(","))
    return math.prod(int(degrees.get(axis, 1)) for axis in ("dp_replicate", "dp_shard", "cp", "tp", "pp"))


def state(path: Path, step: int = 0) -> dict[str, Tensor]:
    """Every tensor of a run's checkpoint, whole."""
    checkpoint = checkpoint_folder(path / "checkpoints", step)
    tensors = {each.name: torch.empty(each.shape, dtype=each.dtype) for each in stored_tensors(checkpoint)}
    load(checkpoint, tensors, Peers())
    return tensors


def upcycle_on_rank(
    source: Path, target: Path, overrides: tuple[str, ...], path: Path, options: dict, before: tuple | None = None
) -> dict:
    """What `upmix upcycle` does on a rank that has joined; `before` is a change to make first: (function, *args)."""
    import pytest

    from framework.surgery import find_source, upcycle

    os.environ["UPMIX_DATA"] = str(target.parent / "data")
    with pytest.MonkeyPatch.context() as patch:
        if before is not None:
            before[0](patch, *before[1:])
        job = prepare(find_source(source), load_recipe(str(target), overrides), Options(**options))
        return upcycle(job, path, torch.device("cpu"))
