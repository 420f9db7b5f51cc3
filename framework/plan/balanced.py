"""Routing as a rehearsal has it, whose tensors hold no numbers: every expert gets as many rows as any other."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from torch import Tensor, nn

from framework.model.moe import MixtureOfExperts
from framework.model.moe.routing import capacity
from framework.plan.dispatch import mean_visits
from parallel import DeduplicatedDispatcher

if TYPE_CHECKING:
    from framework.model.moe import Assignment, Dispatcher, ExpertFunction
    from framework.plan.ledger import Ledger


def balance_routing(model: nn.Module, ledger: Ledger) -> None:
    """Tell the ledger, whenever an MoE block of the model runs, how many rows go where."""
    for module in model.modules():
        if isinstance(module, MixtureOfExperts):
            module.register_forward_pre_hook(partial(_expect_rows, ledger))
            if hasattr(module.dispatcher, "num_ranks"):
                module.dispatcher = _Balanced(module.dispatcher, module.settings.num_experts, ledger)


def _expect_rows(ledger: Ledger, moe: MixtureOfExperts, inputs: tuple) -> None:
    """Rows that capacity leaves, or that experts choose, which are found by `nonzero`."""
    settings, (batch_size, seq_len, _) = moe.settings, inputs[0].shape
    by_position = settings.router == "expert_choice" and settings.choice_group == "position"
    parts = moe.token_parts.batch if by_position else moe.token_parts.sequence
    groups, size = (seq_len, batch_size) if by_position else (batch_size, seq_len)
    rows = groups * settings.num_experts * capacity(settings, size * parts.count) // parts.count
    if settings.router != "expert_choice":
        rows = min(rows, batch_size * seq_len * settings.top_k)
    ledger.expect_nonzero(rows)


class _Balanced:
    """A dispatcher whose host reads equal counts."""

    def __init__(self, dispatcher: Dispatcher, num_experts: int, ledger: Ledger) -> None:
        self.dispatcher, self.num_experts, self.ledger = dispatcher, num_experts, ledger

    @property
    def bytes_sent(self) -> int:
        return self.dispatcher.bytes_sent

    def __call__(self, x_TD: Tensor, assignment: Assignment, experts: ExpertFunction) -> Tensor:
        num_ranks, num_rows = self.dispatcher.num_ranks, len(assignment.token_M)
        counts = _equal_parts(num_rows, num_ranks) * 2
        if isinstance(self.dispatcher, DeduplicatedDispatcher):
            visits = mean_visits(num_rows / max(1, len(x_TD)), self.num_experts, num_ranks)
            counts += _equal_parts(min(num_rows, round(len(x_TD) * visits)), num_ranks) * 2
        self.ledger.expect(counts)
        return self.dispatcher(x_TD, assignment, experts)


def _equal_parts(total: int, num_parts: int) -> list[int]:
    return [total * (part + 1) // num_parts - total * part // num_parts for part in range(num_parts)]
