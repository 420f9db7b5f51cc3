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

from framework.model import Context
from framework.optim import set_learning_rates
from framework.training.evaluation import document_context
from framework.training.shares import micro_batches
from framework.training.signals import STOP_SIGNALS, StopRequest
from framework.training.statistics import ExpertStatistics, ExpertUse
from parallel import clip_gradients, first_nonfinite_gradient, gradient_norm, set_gradient_sync
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
    """What training knows beside tensors and the step; stored in the checkpoint's manifest."""

    skipped_steps: int = 0
    skipped_in_a_row: int = 0


@dataclass(frozen=True)
class StepResult:
    """What a step measured, the same on every rank.

    loss: mean cross entropy in nats a token, without auxiliary losses. grad_norm: before clipping. lr: of a group with
    neutral factors. stop_signal: a signal that some rank got, or 0. seconds: wall time on this rank.
    """

    loss: float
    grad_norm: float
    lr: float
    skipped: bool
    stop_signal: int
    experts: ExpertUse
    seconds: float


class Trainer:
    """Takes steps of a parallelized model. Every method is collective over the ranks of the mesh."""

    def __init__(
        self, recipe: Recipe, budget: Budget, mesh: Mesh, model: nn.Module, optimizer: torch.optim.AdamW, data: DataSet,
    ) -> None:
        self.recipe, self.budget, self.mesh, self.data = recipe, budget, mesh, data
        self.model, self.optimizer = model, optimizer
        self.device = torch.device(mesh.device_type)
        self.progress = Progress()
        self.statistics = ExpertStatistics(model)

    def step(self, step: int, request: StopRequest) -> StepResult:
        """Train on the batch of a step (1..num_steps). The update is skipped where loss or gradient is not finite.

        request: of this rank; what any rank was asked is told to all. Raises TrainingFailure after too many skipped
        steps in a row.
        """
        begin = time.perf_counter()
        lr = set_learning_rates(self.optimizer, self.recipe.optim, step, self.budget.num_steps)
        loss_share = self._forward_backward(step)
        grad_norm = gradient_norm(self.model.parameters(), self.mesh)
        loss, number, experts = self._sum_over_ranks(loss_share, request.number)
        skipped = not (torch.isfinite(grad_norm) and torch.isfinite(loss))
        if skipped:
            self._skip(step)
        else:
            self._update(grad_norm, experts)
        self.optimizer.zero_grad()
        return StepResult(loss.item(), grad_norm.item(), lr, skipped, number, experts, time.perf_counter() - begin)

    def _forward_backward(self, step: int) -> Tensor:
        """Back-propagate this rank's share of the step's loss; returns the share, without auxiliary losses."""
        self.model.train()
        batch_size = self.budget.batch_size(step)
        num_tokens = batch_size * self.recipe.data.seq_len
        forwards = list(micro_batches(
            self.budget.samples_before(step), batch_size, self.recipe.data.micro_batch_size,
            self.mesh.batch.get_local_rank(), self.mesh.batch.size(),
        ))
        loss = torch.zeros((), dtype=torch.float64, device=self.device)
        for forward in forwards:
            set_gradient_sync(self.model, last=forward is forwards[-1])
            tokens_BS, targets_BS, context = self._batch(*forward, batch_size)
            share = self.model(tokens_BS, context, targets_BS) / num_tokens
            share.backward()
            loss += share.detach()
        return loss

    def _batch(self, first_sample: int, count: int, num_sequences: int) -> tuple[Tensor, Tensor, Context]:
        samples, isolate = (first_sample, count), self.recipe.data.isolate_documents
        tokens_BS = torch.from_numpy(self.data.train.batch(*samples)).to(self.device)
        context = document_context(self.data.train, samples, isolate, self.device, num_sequences)
        return tokens_BS[:, :-1], tokens_BS[:, 1:], context

    def _sum_over_ranks(self, loss_share: Tensor, stop_signal: int) -> tuple[Tensor, int, ExpertUse]:
        """One all-reduce for all that the ranks tell each other: loss, who was asked to stop, use of experts."""
        signals = torch.tensor([stop_signal == number for number in STOP_SIGNALS], dtype=torch.float64)
        counts, fields = self.statistics.take(self.device)
        vector = torch.cat([loss_share[None], signals.to(self.device), counts])
        vector = all_sum(vector, dist.group.WORLD).cpu()
        loss, signals, counts = vector.split([1, len(STOP_SIGNALS), len(counts)])
        number = next((number for number, asked in zip(STOP_SIGNALS, signals, strict=True) if asked), 0)
        return loss[0], number, self.statistics.read(counts, fields)

    def _update(self, grad_norm: Tensor, experts: ExpertUse) -> None:
        if self.recipe.optim.clip_norm is not None:
            clip_gradients(self.model.parameters(), self.recipe.optim.clip_norm, grad_norm)
        self.optimizer.step()
        self.statistics.update_selection_biases(experts)
        self.progress.skipped_in_a_row = 0

    def _skip(self, step: int) -> None:
        self.progress.skipped_steps += 1
        self.progress.skipped_in_a_row += 1
        culprit = first_nonfinite_gradient(self.model.named_parameters())
        where = f"the gradient of {culprit}" if culprit else "the loss"
        logger.warning("step %d: %s is not finite, so nothing was updated", step, where)
        if self.progress.skipped_in_a_row >= self.recipe.training.max_bad_steps:
            raise TrainingFailure(f"{self.progress.skipped_in_a_row} steps in a row up to step {step} were skipped; "
                                  f"in the last, {where} is not finite")
