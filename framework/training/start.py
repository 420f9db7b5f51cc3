"""A run from its recipe to DONE, on every rank; a recipe's runs one after the other."""

from __future__ import annotations

import gc
import logging
from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from rich.console import Console

from framework.training.agreement import leave_if_asked
from framework.training.branch import branch_off
from framework.training.data_state import FILE_NAME, hold_data, refuse_other_data, require_same_data
from framework.training.groups import Groups
from framework.training.logs import log_to
from framework.training.parts import Part, admit_parts
from framework.training.preconditions import require_packages, require_ranks
from framework.training.run import Run
from framework.training.run_folder import Admission, admit, enter
from framework.training.setup import load_tasks_together, open_data_together
from framework.training.signals import BEFORE_TRAINING, Stopped, StopRequest

if TYPE_CHECKING:
    from framework.recipe import Loaded
    from framework.recipe.schema import Parallel

logger = logging.getLogger(__name__)


def meet(layout: Parallel, device: torch.device) -> Groups:
    """The groups of a rank that has joined, once every rank is there. A signal may end the process in here."""
    groups = Groups(layout, device.type)
    groups.peers.barrier()
    return groups


def train_parts(
    parts: tuple[Part, ...], resume: bool, device: torch.device, groups: Groups, request: StopRequest,
) -> int:
    """Train a recipe's runs one after the other, each slide from its trunk's checkpoint. Collective over the world.

    groups: what `meet` gave. request: of this rank, which notes signals from here on.
    Returns 0 when all are finished, or 128 + the number of the signal that stopped one. Raises as `train` does,
    UserError as `admit_parts` and `branch_off` do, and Stopped where another rank was ended by the signal of this one.
    """
    with request.excusing():
        groups.peers.barrier()  # a rank that was not out of `meet` when its signal came is gone, without the others
    require_ranks(parts[0].loaded.recipe.parallel, groups.peers.count)
    groups.peers.lead(lambda: admit_parts(parts, resume))
    for part in parts:
        if part.trunk is not None:
            groups.peers.lead(lambda part=part: branch_off(part.trunk.path, part.slide, part.loaded, part.path))
        if code := train(part.loaded, part.path, resume or part.trunk is not None, device, groups, request):
            return code
        gc.collect()  # the model of one run must be gone before the next one is built
    return 0


def train(
    loaded: Loaded, path: Path, resume: bool, device: torch.device, groups: Groups | None = None,
    request: StopRequest | None = None,
) -> int:
    """Train one run in its folder, from its newest good checkpoint if it has one. Collective over the world.

    groups: of an earlier run on the same layout; None: new ones. request: of this rank; None: a new one. Slides of the
    recipe are not trained, but the checkpoints that they branch off are kept.
    Returns 0 when the run is finished, or 128 + the number of the signal that stopped it: after a checkpoint, or before
    its first step, with the checkpoints as they were.
    Raises UserError (see `preconditions`, `run_folder.enter`, `data_state`, `Checkpointer.load_newest`),
    TrainingFailure, and RuntimeError for a checkpoint that could not be written.
    """
    groups = groups or Groups(loaded.recipe.parallel, device.type)
    require_ranks(loaded.recipe.parallel, groups.peers.count)
    with nullcontext(request) if request else StopRequest() as request, ExitStack() as held:
        try:
            stopped = _train(loaded, path, resume, device, groups, request, held)
            how = "after a checkpoint; --resume goes on from there"
        except Stopped as stop:  # on all ranks at the same point
            stopped, how = stop.signal, BEFORE_TRAINING
        if stopped:
            if groups.peers.leads:
                logger.warning(Stopped(stopped).tell(how))
            groups.peers.barrier()  # a launcher kills the ranks that are left a moment after one has gone
        return 128 + stopped if stopped else 0


def _train(
    loaded: Loaded, path: Path, resume: bool, device: torch.device, groups: Groups, request: StopRequest,
    held: ExitStack,
) -> int:
    """Returns 0, or the signal that stopped the run after a checkpoint. held: gets the folder's lock, on rank 0."""
    peers = groups.peers

    def ask_folder() -> Admission:
        require_packages(loaded.recipe)
        return admit(path, loaded, resume)

    def take_folder() -> Admission:
        if (path / FILE_NAME).exists():
            refuse_other_data(data, path)
        admission, lock = enter(path, loaded, resume)
        held.enter_context(lock)
        hold_data(data, path)
        return admission

    if peers.lead(ask_folder) is Admission.FINISHED:
        return 0
    # Before the folder is made or changed: refused data leaves it as it was.
    leave_if_asked(peers, request)
    data = open_data_together(loaded.recipe, peers, request)
    require_same_data(data, peers)
    leave_if_asked(peers, request)
    tasks = load_tasks_together(loaded, data, peers, request)
    leave_if_asked(peers, request)
    if peers.lead(take_folder) is Admission.FINISHED:
        return 0
    console = Console(stderr=True)
    log_to(console, path if peers.leads else None)
    run = Run(loaded, path, groups, console, device, data, request, tasks)
    if not (stopped := run.train()):
        run.finish()
    return stopped
