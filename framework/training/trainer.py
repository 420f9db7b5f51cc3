"""One optimizer step: micro-batches, shares of the loss, the guard against bad gradients, clipping, the update.

Shapes: B batch, S sequence.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import Tensor, nn

from framework.allocator import keep_freed_blocks
from framework.model import Context
from framework.optim import set_learning_rates
from framework.parallelize.pipeline import LanguageModelPipeline
from framework.training.engines import Update, make_engine
from framework.training.evaluation import document_context
from framework.training.shares import micro_batches
from framework.training.signals import STOP_SIGNALS, StopRequest
from framework.training.statistics import ExpertStatistics, ExpertUse, Field
from framework.training.transfer import filled, to_device
from parallel.collectives import all_sum

if TYPE_CHECKING:
    from framework.data import DataSet
    from framework.recipe.schema import Recipe
    from framework.training.budget import Budget
    from parallel import Mesh

logger = logging.getLogger(__name__)


class TrainingFailure(RuntimeError):
    """Training cannot go on; says why in one line."""


@dataclass
class Progress:
    """What training knows beside tensors and the step; stored in the checkpoint's manifest.

    owes_evaluation: the one that was due after the step was left out or broken off for a stop.
    """

    skipped_steps: int = 0
    skipped_in_a_row: int = 0
    owes_evaluation: bool = False


@dataclass(frozen=True)
class StepResult:
    """What a step measured, the same on every rank.

    loss: mean cross entropy in nats a token, without auxiliary losses. grad_norm: before clipping. lr: of a group with
    neutral factors. stop_signal: a signal that some rank got, or 0. seconds: wall time on this rank. bubble_share: of
    the ranks' time, in which a pipeline's schedule leaves them waiting; None without a pipeline.
    """

    loss: float
    grad_norm: float
    lr: float
    skipped: bool
    stop_signal: int
    experts: ExpertUse
    seconds: float
    bubble_share: float | None = None


class Trainer:
    """Takes steps of a parallelized model. Every method is collective over the ranks of the mesh."""

    def __init__(
        self, recipe: Recipe, budget: Budget, mesh: Mesh, model: nn.Module, optimizer: torch.optim.AdamW, data: DataSet,
    ) -> None:
        self.recipe, self.budget, self.mesh, self.data = recipe, budget, mesh, data
        self.model, self.optimizer = model, optimizer
        self.device = torch.device(mesh.device_type)
        if self.device.type == "cpu":
            keep_freed_blocks()
        self.progress = Progress()
        self.pipeline = self._make_pipeline() if mesh.sizes.pp > 1 else None
        counted = self.pipeline.counted_parameters() if self.pipeline else model.parameters()
        self.engine = make_engine(recipe, model, optimizer, mesh, counted)
        self.statistics = ExpertStatistics(model, mesh.pp.get_group() if self.pipeline else None)

    def step(self, step: int, request: StopRequest) -> StepResult:
        """Train on the batch of a step (1..num_steps). The update is skipped where loss or gradient is not finite.

        request: of this rank; what any rank was asked is told to all. Raises TrainingFailure after too many skipped
        steps in a row.
        """
        begin = time.perf_counter()
        lr = set_learning_rates(self.optimizer, self.recipe.optim, step, self.budget.num_steps)
        loss_share = self._forward_backward(step)
        sums, fields = self._sum_over_ranks(loss_share, request.number)
        # Nothing before has waited for the device, and the update is given to it before anything is read back.
        update = self._update(sums[0].isfinite())
        loss, number, experts = self._read(sums, fields)
        self._conclude(step, update, experts)
        return StepResult(
            loss.item(), update.grad_norm.item(), lr, update.culprit is not None, number, experts,
            time.perf_counter() - begin, None if self.pipeline is None else self.pipeline.bubble_share,
        )

    def _make_pipeline(self) -> LanguageModelPipeline:
        training = self.recipe.training
        can_split = training.recompute == "none" and not training.compile
        return LanguageModelPipeline(self.model, self.mesh, self.recipe.parallel.pp_schedule, can_split)

    def _forward_backward(self, step: int) -> Tensor:
        """Back-propagate this rank's share of the step's loss; returns the share, without auxiliary losses."""
        self.model.train()
        batch_size = self.budget.batch_size(step)
        num_tokens = batch_size * self.recipe.data.seq_len
        forwards = list(micro_batches(
            self.budget.samples_before(step), batch_size, self.recipe.data.micro_batch_size,
            self.mesh.batch.get_local_rank(), self.mesh.batch.size(),
        ))
        if self.pipeline is not None:
            whole = forwards[0][0], sum(count for _, count in forwards)
            return self.pipeline.train(*self._batch(*whole, batch_size), len(forwards), num_tokens)
        loss = torch.zeros((), dtype=torch.float64, device=self.device)
        for forward in forwards:
            share = self.engine.forward(*self._batch(*forward, batch_size)) / num_tokens
            self.engine.backward(share, last=forward is forwards[-1])
            loss += share.detach()
        return loss

    def _batch(self, first_sample: int, count: int, num_sequences: int) -> tuple[Tensor, Context, Tensor]:
        """What the model takes: tokens, their context, targets."""
        samples, isolate = (first_sample, count), self.recipe.data.isolate_documents
        tokens_BS = to_device(self.data.train.batch(*samples), self.device)
        context = document_context(self.data.train, samples, isolate, self.device, num_sequences)
        return tokens_BS[:, :-1], context, tokens_BS[:, 1:]

    def _sum_over_ranks(self, loss_share: Tensor, stop_signal: int) -> tuple[Tensor, list[Field]]:
        """One all-reduce for all that the ranks tell each other, on the device: loss, who was asked to stop, use of
        experts; and what stands in the last."""
        signals = [filled(stop_signal == number, self.device) for number in STOP_SIGNALS]
        counts, fields = self.statistics.take(self.device)
        # All ranks of tp have the same cross entropy.
        vector = torch.cat([loss_share[None] / self.mesh.sizes.tp, *signals, counts])
        return all_sum(vector, dist.group.WORLD), fields

    def _update(self, loss_is_finite: Tensor) -> Update:
        return self.engine.update(loss_is_finite)

    def _read(self, sums: Tensor, fields: list[Field]) -> tuple[Tensor, int, ExpertUse]:
        loss, signals, counts = sums.cpu().tensor_split([1, 1 + len(STOP_SIGNALS)])
        number = next((number for number, asked in zip(STOP_SIGNALS, signals, strict=True) if asked), 0)
        return loss, number, self.statistics.read(counts, fields)

    def _conclude(self, step: int, update: Update, experts: ExpertUse) -> None:
        if update.culprit is not None:
            self._skip(step, update.culprit)
        else:
            self.statistics.update_selection_biases(experts)
            self.progress.skipped_in_a_row = 0

    def _skip(self, step: int, culprit: str) -> None:
        self.progress.skipped_steps += 1
        self.progress.skipped_in_a_row += 1
        logger.warning("step %d: %s is not finite, so nothing was updated", step, culprit)
        if self.progress.skipped_in_a_row >= self.recipe.training.max_bad_steps:
            raise TrainingFailure(f"{self.progress.skipped_in_a_row} steps in a row up to step {step} were skipped; "
                                  f"in the last, {culprit} is not finite")
