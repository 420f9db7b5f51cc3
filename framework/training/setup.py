"""The parts of a run: data, tasks and model."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from framework.data import open_data
from framework.errors import UserError
from framework.model import LanguageModel, build_language_model
from framework.optim import build_adamw
from framework.parallelize import parallelize, prepare_for_zero
from framework.parametrization import initialize, widths
from framework.recipe.stages import num_stages, stage_layers
from framework.tasks.conditions import require_token_choice
from framework.tasks.harness import load_tasks
from framework.training.peers import Peers
from parallel import Mesh

if TYPE_CHECKING:
    from framework.data import DataSet
    from framework.recipe import Loaded
    from framework.recipe.schema import Recipe
    from framework.tasks.harness import TaskSet
    from framework.training.signals import StopRequest


def open_data_together(recipe: Recipe, peers: Peers, request: StopRequest | None = None) -> DataSet:
    """The recipe's data on every rank; where it is not prepared yet, rank 0 does that while the others wait.

    request: of this rank; a stop signal to rank 0 breaks the preparing off, and Stopped is raised on all. None: signals
    do what they do in this process.
    """

    def opened() -> DataSet:
        return open_data(recipe.data, recipe.model.vocab_size, recipe.training.seed, progress=peers.leads)

    def prepare() -> None:
        with request.excusing(), request.raising():
            opened()

    peers.lead(prepare if request is not None else lambda: opened() and None)
    return opened()


def load_tasks_together(
    loaded: Loaded, data: DataSet, peers: Peers, request: StopRequest
) -> TaskSet | None:
    """The recipe's downstream tasks on rank 0, where it has some, with their documents; None elsewhere.

    request: of this rank; a stop signal to rank 0 breaks the loading off, and Stopped is raised on all.
    Raises UserError, on all ranks, as `load_tasks` does, and where the model or its data have no use for tasks.
    """
    settings, found = loaded.recipe.tasks, []
    if not settings.names:
        return None

    def load() -> None:
        require_token_choice(loaded.architecture, "tasks.names")
        if data.tokenizer is None:
            raise UserError("tasks.names: the data have no tokenizer; allowed: a data.tokenizer that spells texts")
        with request.excusing(), request.raising():
            found.append(load_tasks(settings.names, settings.path, settings.num_fewshot, loaded.recipe.data.seq_len))

    peers.lead(load)
    return found[0] if found else None


def build_model(
    loaded: Loaded, mesh: Mesh, device: torch.device, computed_in: torch.dtype | None = None
) -> LanguageModel:
    """The recipe's model, split over the mesh, initialised; no rank ever holds more than its part.

    For DeepSpeed it is whole on every rank, until the engine is made.
    computed_in: of weights and of all that is computed, for proofs in float64; None: float32 weights, and the recipe's
        own for activations.
    Raises UserError where the model cannot be split so.
    """
    training, rules = loaded.recipe.training, widths(loaded.recipe, loaded.architecture)
    with torch.device("meta"):
        model = build_language_model(loaded.architecture, rules).to(computed_in)
    try:
        model = _split(model, loaded, mesh, computed_in or getattr(torch, training.dtype))
    except ValueError as error:
        raise UserError(f"parallel: {error}") from error
    model.to_empty(device=device)
    initialize(model, loaded.recipe.parametrization.init, training.seed, rules)
    return model


def build_optimizer(loaded: Loaded, model: LanguageModel) -> torch.optim.AdamW:
    """The recipe's optimizer of its model; without state where DeepSpeed's engine holds it."""
    recipe, rules = loaded.recipe, widths(loaded.recipe, loaded.architecture)
    return build_adamw(model, recipe.optim, rules, with_state=recipe.parallel.engine == "fsdp")


def _split(model: LanguageModel, loaded: Loaded, mesh: Mesh, dtype: torch.dtype) -> LanguageModel:
    training, layout = loaded.recipe.training, loaded.recipe.parallel
    if layout.engine == "deepspeed":
        return prepare_for_zero(model, mesh, training.compile, training.recompute)
    stages = stage_layers(loaded.architecture, loaded.recipe.data.seq_len, num_stages(layout))
    return parallelize(model, mesh, dtype=dtype, compile=training.compile, recompute=training.recompute,
                       dedup_dispatch=layout.dedup_dispatch, stages=stages, dispatch=layout.dispatch)
