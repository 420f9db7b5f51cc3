"""The loop over steps: train, report, evaluate, save, and leave when asked to."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Set
from dataclasses import asdict
from typing import Any

import torch.distributed as dist

from framework.training.agreement import StopPoll
from framework.training.callbacks import Callback
from framework.training.checkpoint import Checkpointer
from framework.training.evaluation import evaluate
from framework.training.peers import Peers
from framework.training.rows import eval_row, experts_row, train_row, wants_experts_row
from framework.training.shares import forward_size
from framework.training.signals import StopRequest
from framework.training.trainer import StepResult, Trainer
from parallel.collectives import all_sum

logger = logging.getLogger(__name__)


class Loop:
    """Takes a trainer through its steps. Collective over all ranks; only rank 0 has callbacks that write.

    branch_steps: after which it saves, whatever the recipe's interval.
    """

    def __init__(
        self, trainer: Trainer, checkpointer: Checkpointer, callbacks: Iterable[Callback], peers: Peers,
        flops_per_token: float, branch_steps: Set[int] = frozenset(),
    ) -> None:
        self.trainer, self.checkpointer, self.callbacks = trainer, checkpointer, list(callbacks)
        self.peers, self.branch_steps = peers, branch_steps
        self.recipe, self.budget = trainer.recipe, trainer.budget
        self.flops_per_token = flops_per_token

    def run(self, first_step: int, request: StopRequest) -> int:
        """Train from a step to the last, which is always evaluated and saved. Returns 0, or the signal that ended it.

        request: of this rank. Asked to stop, it ends the step under way, or the forward of an evaluation, saves, and
        returns. The evaluation that is then missing, the next run of the loop makes first of all.
        """
        num_steps, progress = self.budget.num_steps, self.trainer.progress
        with self.checkpointer:
            stopped = self._evaluate(first_step - 1, request) if progress.owes_evaluation else 0
            for step in range(first_step, num_steps + 1):
                if stopped:
                    break
                self._each("begin", step)
                result = self.trainer.step(step, request)
                self._report(step, result)
                stopped = result.stop_signal or self._evaluate(step, request)
                progress.owes_evaluation = stopped != 0 and self._evaluates_after(step)
                if stopped or step == num_steps or self._saves_after(step):
                    self._save(step)
                self.checkpointer.check()
                self._each("end", step)
                if step == num_steps and not progress.owes_evaluation:
                    stopped = 0  # nothing is left to do
        return stopped

    def _report(self, step: int, result: StepResult) -> None:
        if step == self.budget.num_steps or is_due(step, self.recipe.training.log_every):
            self._row(train_row(step, result, self.budget, self.flops_per_token, self.trainer.progress.skipped_steps))
        if wants_experts_row(step, result, self.budget.num_steps):
            self._row(experts_row(step, result))

    def _evaluates_after(self, step: int) -> bool:
        due = step == self.budget.num_steps or is_due(step, self.recipe.training.eval_every)
        return due and self.trainer.data.validation.num_windows > 0

    def _saves_after(self, step: int) -> bool:
        return step in self.branch_steps or is_due(step, self.recipe.checkpoint.every)

    def _evaluate(self, step: int, request: StopRequest) -> int:
        """Evaluate where that is due after a step; returns the signal that broke it off, without a row, or 0."""
        if not self._evaluates_after(step):
            return 0
        poll = StopPoll(self.peers, request)
        stopped = 0

        def goes_on() -> bool:
            nonlocal stopped
            self._each("beat")
            stopped = poll.ask()
            return not stopped

        trainer, batch, sizes = self.trainer, self.trainer.mesh.batch, self.trainer.mesh.sizes
        measured = evaluate(
            trainer.model, trainer.data.validation, sizes.pp * forward_size(self.recipe.data, batch.size()),
            self.recipe.data.isolate_documents, trainer.device, batch.get_local_rank(), batch.size(),
            # All ranks of tp have the same cross entropy.
            sum_over_ranks=lambda nats: all_sum(nats, dist.group.WORLD) / sizes.tp,
            goes_on=goes_on, nats_of=trainer.pipeline and trainer.pipeline.evaluate,
        )
        trainer.statistics.discard()
        poll.answer()
        if measured is not None:
            self._row(eval_row(step, measured))
        return stopped

    def _save(self, step: int) -> None:
        trainer = self.trainer
        background = self.recipe.checkpoint.background
        self.checkpointer.save(step, trainer.engine.tensors(), asdict(trainer.progress), background)

    def _row(self, row: dict[str, Any]) -> None:
        for callback in self.callbacks:
            callback.row(row)

    def _each(self, hook: str, *step: int) -> None:
        for callback in self.callbacks:
            getattr(callback, hook)(*step)


def is_due(step: int, every: int | None) -> bool:
    """Whether something that happens every so many steps happens after this one."""
    return every is not None and step % every == 0
