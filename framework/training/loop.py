"""The loop over steps: train, report, evaluate, save, and leave when asked to."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence, Set
from dataclasses import asdict
from typing import Any

from framework.training.agreement import StopPoll
from framework.training.callbacks import Callback
from framework.training.checkpoint import Checkpointer
from framework.training.measurements import Measurement
from framework.training.peers import Peers
from framework.training.rows import experts_row, train_row, wants_experts_row
from framework.training.signals import StopRequest
from framework.training.trainer import StepResult, Trainer

logger = logging.getLogger(__name__)


class Loop:
    """Takes a trainer through its steps. Collective over all ranks; only rank 0 has callbacks that write.

    measurements: what is measured between steps. branch_steps: after which it saves, whatever the recipe's interval.
    """

    def __init__(
        self, trainer: Trainer, checkpointer: Checkpointer, callbacks: Iterable[Callback], peers: Peers,
        measurements: Sequence[Measurement], flops_per_token: float, branch_steps: Set[int] = frozenset(),
    ) -> None:
        self.trainer, self.checkpointer, self.callbacks = trainer, checkpointer, list(callbacks)
        self.peers, self.measurements, self.branch_steps = peers, measurements, branch_steps
        self.recipe, self.budget = trainer.recipe, trainer.budget
        self.flops_per_token = flops_per_token

    def run(self, first_step: int, request: StopRequest, measured: Set[str] = frozenset()) -> int:
        """Train from a step to the last, which is always evaluated and saved. Returns 0, or the signal that ended it.

        request: of this rank. Asked to stop, it ends the step under way, or the forward of an evaluation, saves, and
        returns. The evaluations that are then missing, the next run of the loop makes first of all, but those of the
        kinds `measured`, which have their rows.
        """
        num_steps, progress = self.budget.num_steps, self.trainer.progress
        with self.checkpointer:
            stopped = self._evaluate(first_step - 1, request, measured) if progress.owes_evaluation else 0
            for step in range(first_step, num_steps + 1):
                if stopped:
                    break
                self._each("begin", step)
                result = self.trainer.step(step, request)
                self._report(step, result)
                stopped = result.stop_signal or self._evaluate(step, request)
                progress.owes_evaluation = stopped != 0 and bool(self._due_after(step))
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

    def _due_after(self, step: int) -> list[Measurement]:
        return [each for each in self.measurements if step == self.budget.num_steps or is_due(step, each.every)]

    def _saves_after(self, step: int) -> bool:
        return step in self.branch_steps or is_due(step, self.recipe.checkpoint.every)

    def _evaluate(self, step: int, request: StopRequest, measured: Set[str] = frozenset()) -> int:
        """Measure what is due after a step; returns the signal that broke it off, or 0.

        What was broken off, and what would have come after it, has no row.
        """
        for measurement in self._due_after(step):
            if measurement.kind not in measured and (stopped := self._measure(measurement, step, request)):
                return stopped
        return 0

    def _measure(self, measurement: Measurement, step: int, request: StopRequest) -> int:
        poll = StopPoll(self.peers, request)
        stopped = 0

        def goes_on() -> bool:
            nonlocal stopped
            self._each("beat")
            stopped = poll.ask()
            return not stopped

        row = measurement.measure(step, goes_on)
        self.trainer.statistics.discard()
        poll.answer()
        if row is not None:
            self._row(row)
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
