"""A stored run measured in one process, in float32: its validation loss, and downstream tasks."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from framework.data import open_data
from framework.errors import UserError
from framework.tasks.collective import Team
from framework.tasks.conditions import require_token_choice
from framework.tasks.continuation import with_caches
from framework.tasks.scoring import Scorer, Watch, unwatched
from framework.tasks.task_model import TaskModel
from framework.training.data_state import refuse_other_data
from framework.training.evaluation import evaluate, num_batches
from framework.training.preconditions import mesh_sizes
from framework.training.shares import forward_size

if TYPE_CHECKING:
    from framework.tasks.harness import TaskSet
    from framework.training.load import LoadedRun


def measure_loss(
    found: LoadedRun, run: Path, device: torch.device, watch: Watch = unwatched
) -> dict[str, Any]:
    """`val_loss` in nats a token, `val_bits_per_byte` (None where not known) and `tokens`, as the run measures them.
    watch: told of forwards.

    Raises UserError where the run names no data, or they are not here, are others than it was trained on, or hold
    nothing out.
    """
    recipe = found.loaded.recipe
    if not _names_data(found):
        raise UserError(f"{run}: its recipe names no data to measure a loss on; allowed: --tasks, or a run that was "
                        "converted with data.corpus=...")
    data = open_data(recipe.data, recipe.model.vocab_size, recipe.training.seed)
    refuse_other_data(data, run)
    if data.validation.num_windows == 0:
        raise UserError(f"{run}: nothing is held out (data.validation_fraction={recipe.data.validation_fraction})")
    watch(0, num_batches(data.validation, _rows(found)))

    def after_a_forward() -> bool:
        watch(1, 0)
        return True

    measured = evaluate(found.model, data.validation, _rows(found), recipe.data.isolate_documents, device,
                        goes_on=after_a_forward)
    return {**vars(measured), "tokens": data.validation.num_tokens}


def has_validation(found: LoadedRun) -> bool:
    """Whether the run's recipe names data and holds some out; a run of converted weights may name none."""
    return _names_data(found) and found.loaded.recipe.data.validation_fraction > 0


def _names_data(found: LoadedRun) -> bool:
    data = found.loaded.recipe.data
    return data.corpus is not None or bool(data.blend)


def task_model(
    found: LoadedRun, run: Path, device: torch.device, batch_size: int | None = None, watch: Watch = unwatched
) -> TaskModel:
    """What lm-eval's tasks call. batch_size: rows of a forward; None: as many as in the run's own. watch: told of rows
    and of prompts.

    Raises UserError for a run without a tokenizer, and as `require_token_choice` does.
    """
    if found.tokenizer is None:
        raise UserError(f"{run}: this run has no tokenizer, and tasks are texts; allowed: runs whose data.tokenizer "
                        "names one")
    require_token_choice(found.loaded.architecture, f"{run}: --tasks")
    batch_size, seq_len = batch_size or _rows(found), found.loaded.recipe.data.seq_len
    team = Team(Scorer(found.model, seq_len, batch_size, device, watch=watch))
    return TaskModel(team, found.tokenizer, seq_len, with_caches(found.model, batch_size, watch))


def run_tasks(model: TaskModel, tasks: TaskSet, limit: int | None, bootstrap: int) -> dict[str, Any]:
    """lm-eval's results, as `TaskSet.run` gives them."""
    return model.team.lead(lambda: tasks.run(model, limit, bootstrap))


def _rows(found: LoadedRun) -> int:
    recipe = found.loaded.recipe
    return forward_size(recipe.data, mesh_sizes(recipe.parallel).batch)
