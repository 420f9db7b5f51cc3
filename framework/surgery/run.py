"""Upcycling from a checkpoint to a new run folder, on every rank of the target's layout."""

from __future__ import annotations

import dataclasses
import gc
import json
import logging
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from rich.console import Console

from framework.errors import UserError
from framework.files import write_atomically
from framework.surgery.difference import Difference, compare, logits, some_tokens
from framework.surgery.fill import Plan, fill_moments, fill_weights
from framework.surgery.new_run import new_run_folder
from framework.surgery.plan import make_plan
from framework.surgery.reader import SourceReader
from framework.surgery.task import Upcycling
from framework.training.budget import make_budget
from framework.training.checkpoint import Checkpointer, DamagedCheckpoint, checkpoint_folder, load
from framework.training.checkpoint.state import model_tensors, optimizer_tensors
from framework.training.code_state import write_code_state
from framework.training.data_state import FILE_NAME, hold_data, require_same_data
from framework.training.load import choose_step
from framework.training.logs import log_to
from framework.training.peers import Peers
from framework.training.preconditions import mesh_sizes, require_ranks
from framework.training.run_folder import write_recipe
from framework.training.setup import build_model, build_optimizer, open_data_together
from framework.training.trainer import Progress
from parallel import Mesh

if TYPE_CHECKING:
    from framework.data import DataSet
    from framework.recipe import Loaded

logger = logging.getLogger(__name__)

EXACT_WITHIN = 1e-4
"""Relative difference of logits above which a promise did not hold; rounding through a deep model stays below."""


def upcycle(task: Upcycling, path: Path, device: torch.device) -> dict[str, Any]:
    """Make the run folder `path`: the target's recipe, and a checkpoint from which `upmix train --resume` goes on.

    Collective over a world of the target's ranks. Returns the report, which the folder's upcycling.json holds too.
    Raises UserError where the folder exists, the data's tokenizer is not the dense run's, or weights cannot be read.
    """
    peers = Peers()
    require_ranks(task.target.recipe.parallel, peers.count)
    step = peers.lead(lambda: choose_step(task.source.run / "checkpoints", task.source.step))
    first_step = peers.lead(lambda: _first_step(task, step))
    plan = make_plan(task)
    data = open_data_together(task.target.recipe, peers)
    require_same_data(data, peers)
    peers.lead(lambda: _require_same_tokenizer(task.source.run, data))
    with ExitStack() as stack:
        folder = peers.lead(lambda: stack.enter_context(new_run_folder(path)))
        log_to(Console(stderr=True), folder if peers.leads else None)
        report = _fill_folder(task, plan, step, first_step, folder, data, peers, device) | {"run": str(path)}
        if peers.leads:
            for warning in report["warnings"]:
                logger.warning("%s", warning)
            hold_data(data, folder)
            write_code_state(folder / "code")
            write_atomically(folder / "upcycling.json", json.dumps(report, indent=1) + "\n")
            write_recipe(folder, task.target)
    peers.barrier()
    return report


def _fill_folder(
    task: Upcycling, plan: Plan, step: int, first_step: int, folder: Path, data: DataSet, peers: Peers,
    device: torch.device,
) -> dict[str, Any]:
    """Write the checkpoint; returns what to tell of it."""
    target = _plain(task.target)
    mesh = Mesh(mesh_sizes(target.recipe.parallel), device.type)
    checkpoint = checkpoint_folder(task.source.run / "checkpoints", step)
    tokens_BS, split = some_tokens(data, target.recipe.data.seq_len, mesh)
    dense = _dense_logits(task, target, mesh, checkpoint, tokens_BS, peers, device)
    gc.collect()  # the dense model must be gone before the new one is built: a host never holds both
    reader = SourceReader(checkpoint, peers)
    model = build_model(target, mesh, device, computed_in=torch.float32)
    fill_weights(model, plan, reader)
    difference = None
    if dense is not REFUSED:
        difference = compare(dense, logits(model, mesh, tokens_BS), tokens_BS, split)
    optimizer = build_optimizer(target, model)
    if task.options.optimizer == "carry":
        fill_moments(model, optimizer, plan, reader)
    with Checkpointer(folder / "checkpoints", Peers()) as checkpointer:
        tensors = model_tensors(model) | optimizer_tensors(model, optimizer)
        checkpointer.save(first_step, tensors, dataclasses.asdict(Progress()), background=False)
    return _report(task, step, first_step, difference)


REFUSED = object()
"""Logits of a dense model that the target's layout cannot split."""


def _dense_logits(
    task: Upcycling, target: Loaded, mesh: Mesh, checkpoint: Path, tokens_BS: torch.Tensor, peers: Peers,
    device: torch.device,
) -> Any:
    """Those of the dense model on the target's layout and stages; the model is gone when they are there."""
    loaded = _plain(task.source.loaded)
    recipe = loaded.recipe.model_copy(update={"parallel": target.recipe.parallel, "data": target.recipe.data})
    architecture = dataclasses.replace(loaded.architecture, cuts=target.architecture.cuts)
    loaded = dataclasses.replace(loaded, recipe=recipe, architecture=architecture)
    try:
        model = build_model(loaded, mesh, device, computed_in=torch.float32)
    except UserError as error:
        logger.warning("logits are not compared: the dense model cannot be split as the target (%s)", error)
        return REFUSED
    try:
        load(checkpoint, model_tensors(model), peers)
    except DamagedCheckpoint as error:
        raise UserError(f"{task.source.run}: {error}") from None
    return logits(model, mesh, tokens_BS)


def _plain(loaded: Loaded) -> Loaded:
    """A recipe for weights alone: sharded by PyTorch, nothing compiled or recomputed. Checkpoints are the same."""
    recipe = loaded.recipe
    training = recipe.training.model_copy(update={"compile": False, "recompute": "none"})
    layout = recipe.parallel.model_copy(update={"engine": "fsdp", "offload": "none"})
    return dataclasses.replace(loaded, recipe=recipe.model_copy(update={"training": training, "parallel": layout}))


def _first_step(task: Upcycling, step: int) -> int:
    """The step that the new run's checkpoint is of."""
    if not task.options.keep_step:
        return 0
    recipe = task.target.recipe
    num_steps = make_budget(recipe.data, recipe.training).num_steps
    if step >= num_steps:
        raise UserError(f"--keep-step: the dense run is at step {step}, the target ends at {num_steps}; allowed: a "
                        "longer target, or no --keep-step")
    return step


def _require_same_tokenizer(run: Path, data: DataSet) -> None:
    """Other tokens would mean other things to the weights."""
    try:
        before = json.loads((run / FILE_NAME).read_text())["tokenizer_sha256"]
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(f"{run / FILE_NAME}: missing or damaged; allowed: a JSON object that tells what data the run "
                        "was started on") from None
    now = data.tokenizer.fingerprint if data.tokenizer else None
    if before != now:
        stored = next((path for path in sorted(run.glob("tokenizer.*"))), "the same tokenizer")
        raise UserError(f"data.tokenizer: the target's is not that of the dense run {run}; allowed: {stored}")


def _report(task: Upcycling, step: int, first_step: int, difference: Difference | None) -> dict[str, Any]:
    mixtures = [
        {"sublayer": pair.place, "num_experts": pair.target.settings.num_experts} | vars(task.splits[pair.prefix])
        for pair in task.pairs if pair.becomes_mixture
    ]
    return {
        "source": str(task.source.run), "source_step": step, "step": first_step,
        "options": dataclasses.asdict(task.options), "mixtures": mixtures, "exact": not task.deviations,
        "deviations": task.deviations, "warnings": warnings(task, difference),
        "difference": None if difference is None else vars(difference),
    }


def warnings(task: Upcycling, difference: Difference | None) -> list[str]:
    """What limits equality where it is promised, and a promise that was not kept."""
    if difference is None or task.deviations or difference.relative <= EXACT_WITHIN:
        return task.warnings
    return [*task.warnings, f"the logits differ by {difference.relative:.2g} relative, though the method is exact: at "
            "some token the router's logits of two replicas may be equal to rounding"]
