"""Checks across sections, and what a command that runs refuses."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from framework.errors import nearest
from framework.recipe.architecture import Architecture
from framework.recipe.base_model import base_architecture
from framework.recipe.errors import DEFAULT, RecipeError, shorten
from framework.recipe.layout_fit import context_misfits, pipeline_misfits, tensor_misfits
from framework.recipe.parameters import family_of, parameters
from framework.recipe.schema import Data, Optim, Parallel, Recipe, Training

if TYPE_CHECKING:
    from framework.recipe.load import Loaded


def check(recipe: Recipe, architecture: Architecture) -> None:
    """Raise RecipeError for a layout, a batch or a rule over roles that cannot be."""
    _check_engine(recipe.parallel, recipe.training.compile)
    _check_experts_layout(recipe.parallel, architecture)
    for size, key in _batch_sizes(recipe.data):
        _check_batch(size, key, recipe.data, recipe.parallel)
    _check_layout(recipe, architecture)
    _check_roles(recipe, architecture)
    _check_parametrization(recipe, architecture)
    _check_slides(recipe.training, recipe.optim)
    first_last = recipe.training.profile_steps
    if first_last and first_last[0] > first_last[1]:
        raise RecipeError("training.profile_steps", f"given {list(first_last)}; allowed: the first step, then the last")


def require_runnable(loaded: Loaded) -> None:
    """Raise RecipeError where a recipe, fine to look at, cannot be trained: no length, no data, no tasks where
    they are set."""
    if loaded.recipe.training.steps is None and loaded.recipe.training.tokens is None:
        raise _placed(loaded, "training", "neither steps nor tokens is given; allowed: one of them")
    if loaded.recipe.data.corpus is None and not loaded.recipe.data.blend:
        raise _placed(loaded, "data", "neither corpus nor blend is given; allowed: one of them")
    tasks = loaded.recipe.tasks
    for name, value in tasks:
        if name != "names" and value is not None and not tasks.names:
            raise _placed(loaded, f"tasks.{name}", "given without tasks.names; allowed: with it")


def _placed(loaded: Loaded, key: str, text: str) -> RecipeError:
    return RecipeError(key, text).located(loaded.origins, DEFAULT)


def _check_engine(parallel: Parallel, compile: bool) -> None:
    """DeepSpeed's ZeRO splits over data-parallel ranks alone; what it is told has no meaning without it."""
    if parallel.engine == "fsdp":
        for key, neutral in (("zero_stage", 3), ("offload", "none")):
            if (given := getattr(parallel, key)) != neutral:
                raise RecipeError((f"parallel.{key}", "parallel.engine"),
                                  f"given {given} with engine fsdp; allowed: {neutral}, or engine deepspeed")
        return
    axes = [axis for axis in ("cp", "tp", "pp", "ep") if getattr(parallel, axis) > 1]
    if axes:
        given = ", ".join(f"{axis} {getattr(parallel, axis)}" for axis in axes)
        raise RecipeError(("parallel.engine", *(f"parallel.{axis}" for axis in axes)),
                          f"deepspeed does not compose with {given}; allowed: dp_replicate, dp_shard, or engine fsdp")
    if compile and parallel.zero_stage == 3:
        raise RecipeError(("training.compile", "parallel.zero_stage"), "given true with zero_stage 3, whose gathering "
                          "of weights torch.compile cannot follow; allowed: false, or zero_stage 1 or 2")
    if parallel.offload == "nvme":
        raise RecipeError("parallel.offload", "given nvme, for which DeepSpeed's async_io would have to be compiled; "
                          "allowed: none, cpu")


def _check_experts_layout(parallel: Parallel, architecture: Architecture) -> None:
    ranks = parallel.dp_shard * parallel.cp * parallel.tp
    if ranks % parallel.ep:
        raise RecipeError(("parallel.ep", "parallel.dp_shard"),
                          f"ep {parallel.ep} does not divide dp_shard * cp * tp = {ranks}; allowed: a divisor")
    for sublayer in architecture.sublayers():
        if sublayer.kind == "moe" and sublayer.settings.num_experts % parallel.ep:
            raise RecipeError("parallel.ep", f"ep {parallel.ep} does not divide the {sublayer.settings.num_experts} "
                              f"experts of {sublayer.letter!r}; allowed: a divisor")


def _batch_sizes(data: Data) -> Iterable[tuple[int, str]]:
    yield data.batch_size, "data.batch_size"
    for size in data.batch_ramp.values():
        yield size, "data.batch_ramp"


def _check_batch(size: int, key: str, data: Data, parallel: Parallel) -> None:
    ranks = parallel.dp_replicate * parallel.dp_shard
    if size % ranks:
        axes = tuple(f"parallel.{axis}" for axis in ("dp_replicate", "dp_shard") if getattr(parallel, axis) > 1)
        raise RecipeError((key, *axes), f"{size} sequences do not divide over {ranks} data-parallel ranks "
                          f"(dp_replicate * dp_shard); allowed: a multiple of {ranks}")
    share, micro = size // ranks, data.micro_batch_size
    if micro and share % micro:
        raise RecipeError(("data.micro_batch_size", key), f"{micro} does not divide a rank's share of {share} "
                          f"sequences ({size} over {ranks} ranks); allowed: a divisor")


def _check_layout(recipe: Recipe, architecture: Architecture) -> None:
    """Sizes that the ranks of an axis cannot split, all of an axis in one line."""
    layout, seq_len = recipe.parallel, recipe.data.seq_len
    misfits = {
        "parallel.tp": tensor_misfits(architecture, layout.tp),
        "parallel.cp": context_misfits(architecture, layout.cp, layout.tp, seq_len),
        "parallel.pp": pipeline_misfits(architecture, recipe.data, layout),
    }
    for key, lines in misfits.items():
        if lines:
            raise RecipeError(key, "; ".join(lines))


def _check_roles(recipe: Recipe, architecture: Architecture) -> None:
    roles = list(dict.fromkeys(row.role for row in parameters(architecture)))
    present = roles + list(dict.fromkeys(family for role in roles if (family := family_of(role))))
    for key, rules in (("optim.relative_lr", recipe.optim.relative_lr),
                       ("parametrization.init.relative_std", recipe.parametrization.init.relative_std)):
        for name in rules:
            if name not in present:
                raise RecipeError(f"{key}.{name}", f"matches no parameter{nearest(name, present)}; "
                                  f"allowed: {', '.join(present)}")


def _check_parametrization(recipe: Recipe, architecture: Architecture) -> None:
    settings = recipe.parametrization
    base_architecture(architecture.model, settings)
    if settings.base_d_model is not None:
        return
    neutral = {"kind": ("standard",), "attention_scale": ("auto", "inverse_sqrt"), "base_model": ({},)}
    for key, allowed in neutral.items():
        if (given := getattr(settings, key)) not in allowed:
            raise RecipeError(f"parametrization.{key}", f"given {shorten(given)} without base_d_model; allowed: with "
                              "the width at which all kinds are one")


def _check_slides(training: Training, optim: Optim) -> None:
    """Only a trapezoid runs on one rate, whatever its length, until it decays; shorter ones are then a part of it."""
    slides, unit = training.slides, training.unit
    if not slides:
        return
    if optim.schedule != "trapezoid" or optim.decay_fraction == 0:
        key, given = ("schedule", optim.schedule) if optim.schedule != "trapezoid" else ("decay_fraction", 0)
        raise RecipeError(("training.slides", f"optim.{key}"), f"given with {key} {given}; allowed: with schedule "
                          "trapezoid and a decay_fraction above 0")
    if unit is None:
        raise RecipeError("training.slides", "given without a length; allowed: with training.steps or training.tokens, "
                          "in whose unit they are")
    if list(slides) != sorted(set(slides)):
        raise RecipeError("training.slides", f"given {shorten(slides)}; allowed: rising lengths")
    if slides[-1] >= (length := getattr(training, unit)):
        raise RecipeError(("training.slides", f"training.{unit}"), f"a slide of {slides[-1]} {unit} in a run of "
                          f"{length}; allowed: shorter ones, in {unit} as the run's own length")
