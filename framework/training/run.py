"""What a run is made of on one rank, from its newest checkpoint to its last step."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from rich.console import Console

from framework.files import write_atomically
from framework.recipe import sizes
from framework.training import callbacks as watchers
from framework.training.agreement import leave_if_asked
from framework.training.budget import make_budget
from framework.training.checkpoint import Checkpointer
from framework.training.groups import Groups
from framework.training.loop import Loop
from framework.training.measurements import measurements
from framework.training.metrics import cut_rows_after, kinds_of_rows
from framework.training.setup import build_model, build_optimizer
from framework.training.slides import list_slides
from framework.training.trainer import Progress, Trainer

if TYPE_CHECKING:
    from framework.data import DataSet
    from framework.recipe import Loaded
    from framework.tasks.harness import TaskSet
    from framework.training.signals import StopRequest

logger = logging.getLogger(__name__)


class Run:
    """Everything that a run is made of, on one rank. Stopped is raised on all ranks where one was asked to stop before
    the first step: `request` is this rank's. tasks: the recipe's, on rank 0.
    """

    def __init__(
        self, loaded: Loaded, path: Path, groups: Groups, console: Console, device: torch.device, data: DataSet,
        request: StopRequest, tasks: TaskSet | None = None,
    ) -> None:
        self.loaded, self.recipe, self.path, self.console = loaded, loaded.recipe, path, console
        self.peers, self.request, self.tasks, mesh = groups.peers, request, tasks, groups.mesh
        self.budget = make_budget(self.recipe.data, self.recipe.training)
        model = build_model(loaded, mesh, device)
        leave_if_asked(self.peers, request)
        optimizer = build_optimizer(loaded, model)
        self.trainer = Trainer(self.recipe, self.budget, mesh, model, optimizer, data)
        self.branch_steps = frozenset(slide.branch_step for slide in list_slides(loaded, path.name))
        rules = self.recipe.checkpoint
        self.checkpointer = Checkpointer(path / "checkpoints", groups.writers, rules.keep_last, rules.keep_every,
                                         self.branch_steps)

    def train(self) -> int:
        """Go on from the newest good checkpoint to the last step. Returns 0, or the signal that ended it before."""
        leave_if_asked(self.peers, self.request)
        first_step = self._restore() + 1
        leave_if_asked(self.peers, self.request)
        measured = self._cut_rows(first_step - 1)
        facts = sizes(self.loaded.architecture, self.recipe.data.seq_len)
        logger.info("%s: %s parameters, %s active; from step %d to %d on %d ranks", self.path.name,
                    f"{facts['params_total']:,}", f"{facts['params_active']:,}", first_step, self.budget.num_steps,
                    self.peers.count)
        callbacks = self._callbacks(first_step)
        try:
            between = measurements(self.trainer, self.peers, self.tasks)
            loop = Loop(self.trainer, self.checkpointer, callbacks, self.peers, between, facts["flops_per_token"],
                        self.branch_steps)
            return loop.run(first_step, self.request, measured)
        finally:
            for callback in callbacks:
                callback.close()

    def finish(self) -> None:
        """Draw the loss and write DONE, which says that nothing is left to do."""
        if self.peers.leads:
            from framework.report import draw_curves, load_runs

            draw_curves(load_runs([self.path]), self.path / "loss.png")
            write_atomically(self.path / "DONE", f"{self.budget.num_steps}\n")
        self.peers.barrier()

    def _restore(self) -> int:
        """Load the newest good checkpoint; returns the steps that it has done, 0 without one."""
        trainer = self.trainer
        tensors = trainer.engine.tensors()
        manifest = self.checkpointer.load_newest(tensors)
        if manifest is None:
            return 0
        trainer.engine.load(tensors)
        trainer.progress = Progress(**manifest.progress)
        return manifest.step

    def _cut_rows(self, step: int) -> frozenset[str]:
        """Drop the rows past the restored step; returns the kinds of those that it has. An evaluation that has its row
        is not owed any more: a later run of this one made it, or the trunk that this slide's rows are from.
        """
        def cut() -> frozenset[str]:
            cut_rows_after(self.path, step)
            return kinds_of_rows(self.path, step)

        return self.peers.lead(cut)

    def _callbacks(self, first_step: int) -> list[watchers.Callback]:
        """The sinks of rank 0, and what watches every rank."""
        training, rank = self.recipe.training, self.peers.rank
        chosen: list[watchers.Callback] = []
        if self.peers.leads:
            chosen += [watchers.JsonLines(self.path), watchers.TensorBoard(self.path, first_step)]
            chosen.append(self._progress(first_step))
        if self.peers.leads and training.wandb:
            chosen.append(watchers.WeightsAndBiases(self.path, self.recipe.model_dump(mode="json")))
        if training.profile_steps is not None:
            chosen.append(watchers.Profiler(self.path, rank, training.profile_steps))
        if training.memory_snapshot and torch.cuda.is_available():
            chosen.append(watchers.MemorySnapshot(self.path, rank))
        elif training.memory_snapshot:
            logger.warning("training.memory_snapshot: only memory of CUDA devices is recorded, and there is none")
        if training.stall_minutes is not None:
            chosen.append(watchers.Watchdog(self.path, rank, 60 * training.stall_minutes))
        return chosen

    def _progress(self, first_step: int) -> watchers.Callback:
        if self.console.is_terminal:
            return watchers.ProgressBar(self.console, first_step, self.budget.num_steps)
        return watchers.ProgressLines(self.budget.num_steps)
