"""A run from its recipe to DONE, on every rank."""

from __future__ import annotations

import logging
import signal
from pathlib import Path
from typing import IO, TYPE_CHECKING

import torch
from rich.console import Console

from framework.training.data_state import FILE_NAME, hold_data, refuse_other_data, require_same_data
from framework.training.logs import log_to
from framework.training.peers import Peers
from framework.training.preconditions import require_packages, require_ranks
from framework.training.run import Run
from framework.training.run_folder import Admission, admit, enter
from framework.training.setup import open_data_together

if TYPE_CHECKING:
    from framework.recipe import Loaded

logger = logging.getLogger(__name__)


def train(loaded: Loaded, path: Path, resume: bool, device: torch.device) -> int:
    """Train a recipe in a run folder, from its newest good checkpoint if it has one. Collective over the world.

    Returns 0 when the run is finished, or 128 + the number of the signal that stopped it after a checkpoint.
    Raises UserError (see `preconditions`, `run_folder.enter`, `data_state`, `Checkpointer.load_newest`),
    TrainingFailure, and RuntimeError for a checkpoint that could not be written.
    """
    peers = Peers()
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
    run = Run(loaded, path, peers, console, device, data)
    if stopped := run.train():
        if peers.leads:
            logger.info("stopped by %s after a checkpoint; --resume goes on from there", signal.Signals(stopped).name)
        peers.barrier()  # a launcher kills the ranks that are left a moment after one has gone
        return 128 + stopped
    run.finish()
    return 0
