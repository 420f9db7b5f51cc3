"""A run from its recipe to DONE, on every rank; a recipe's runs one after the other."""

from __future__ import annotations

import gc
import logging
import signal
from pathlib import Path
from typing import IO, TYPE_CHECKING

import torch
from rich.console import Console

from framework.training.branch import branch_off
from framework.training.data_state import FILE_NAME, hold_data, refuse_other_data, require_same_data
from framework.training.groups import Groups
from framework.training.logs import log_to
from framework.training.parts import Part, admit_parts
from framework.training.preconditions import require_packages, require_ranks
from framework.training.run import Run
from framework.training.run_folder import Admission, admit, enter
from framework.training.setup import open_data_together

if TYPE_CHECKING:
    from framework.recipe import Loaded

logger = logging.getLogger(__name__)


def train_parts(parts: tuple[Part, ...], resume: bool, device: torch.device) -> int:
    """Train a recipe's runs one after the other, each slide from its trunk's checkpoint. Collective over the world.

    Returns 0 when all are finished, or 128 + the number of the signal that stopped one. Raises as `train` does, and
    UserError as `admit_parts` and `branch_off` do.
    """
    layout = parts[0].loaded.recipe.parallel
    groups = Groups(layout, device.type)
    require_ranks(layout, groups.peers.count)
    groups.peers.lead(lambda: admit_parts(parts, resume))
    for part in parts:
        if part.trunk is not None:
            groups.peers.lead(lambda part=part: branch_off(part.trunk.path, part.slide, part.loaded, part.path))
        if code := train(part.loaded, part.path, resume or part.trunk is not None, device, groups):
            return code
        gc.collect()  # the model of one run must be gone before the next one is built
    return 0


def train(loaded: Loaded, path: Path, resume: bool, device: torch.device, groups: Groups | None = None) -> int:
    """Train one run in its folder, from its newest good checkpoint if it has one. Collective over the world.

    groups: of an earlier run on the same layout; None: new ones. Slides of the recipe are not trained, but the
    checkpoints that they branch off are kept.
    Returns 0 when the run is finished, or 128 + the number of the signal that stopped it after a checkpoint.
    Raises UserError (see `preconditions`, `run_folder.enter`, `data_state`, `Checkpointer.load_newest`),
    TrainingFailure, and RuntimeError for a checkpoint that could not be written.
    """
    groups = groups or Groups(loaded.recipe.parallel, device.type)
    peers = groups.peers
    require_ranks(loaded.recipe.parallel, peers.count)
    locks: list[IO[str]] = []  # of rank 0, held until the run is over

    def ask_folder() -> Admission:
        require_packages(loaded.recipe)
        return admit(path, loaded, resume)

    def take_folder() -> Admission:
        if (path / FILE_NAME).exists():
            refuse_other_data(data, path)
        admission, lock = enter(path, loaded, resume)
        locks.append(lock)
        hold_data(data, path)
        return admission

    if peers.lead(ask_folder) is Admission.FINISHED:
        return 0
    # Before the folder is made or changed: refused data leaves it as it was.
    data = open_data_together(loaded.recipe, peers)
    require_same_data(data, peers)
    if peers.lead(take_folder) is Admission.FINISHED:
        return 0
    console = Console(stderr=True)
    log_to(console, path if peers.leads else None)
    run = Run(loaded, path, groups, console, device, data)
    if stopped := run.train():
        if peers.leads:
            logger.info("stopped by %s after a checkpoint; --resume goes on from there", signal.Signals(stopped).name)
        peers.barrier()  # a launcher kills the ranks that are left a moment after one has gone
        return 128 + stopped
    run.finish()
    return 0
