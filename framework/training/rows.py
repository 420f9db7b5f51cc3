"""Rows of metrics.jsonl from what was measured: pure functions, and the memory in use."""

from __future__ import annotations

import resource
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from framework.tasks.results import flat

if TYPE_CHECKING:
    from framework.training.budget import Budget
    from framework.training.evaluation import Evaluation
    from framework.training.trainer import StepResult

EXPERT_ROWS = 100


def train_row(step: int, result: StepResult, budget: Budget, flops_per_token: float, skipped: int) -> dict[str, Any]:
    """What a step measured: loss in nats a token, speed over all ranks, peak memory of rank 0 in bytes."""
    tokens_per_second = budget.batch_size(step) * budget.seq_len / result.seconds
    pipeline = {} if result.bubble_share is None else {"bubble_share": result.bubble_share}
    return {
        "kind": "train", "step": step, "loss": result.loss, "lr": result.lr, "grad_norm": result.grad_norm,
        "tokens": budget.tokens_after(step), "batch_size": budget.batch_size(step),
        "tokens_per_second": tokens_per_second, "model_flops_per_second": tokens_per_second * flops_per_token,
        **result.experts.row(), **pipeline, **peak_memory(), "skipped_steps": skipped,
    }


def eval_row(step: int, evaluation: Evaluation) -> dict[str, Any]:
    """What an evaluation measured."""
    return {"kind": "eval", "step": step, **vars(evaluation)}


def tasks_row(step: int, by_task: Mapping[str, Mapping[str, float]]) -> dict[str, Any]:
    """The figures of downstream tasks, as TASK/METRIC."""
    return {"kind": "tasks", "step": step, **flat(by_task)}


def experts_row(step: int, result: StepResult) -> dict[str, Any]:
    """Share of the tokens of each layer that each expert got."""
    return {"kind": "experts", "step": step, "load": result.experts.shares()}


def wants_experts_row(step: int, result: StepResult, num_steps: int) -> bool:
    """About EXPERT_ROWS pictures of expert load a run, whatever its length."""
    is_due = step % max(1, num_steps // EXPERT_ROWS) == 0 or step in (1, num_steps)
    return is_due and bool(result.experts.tokens_per_expert_E)


def peak_memory() -> dict[str, int]:
    """Bytes at their highest so far: of the process, and of its accelerator if there is one."""
    memory = {"memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}
    if torch.cuda.is_available():
        memory["device_memory_bytes"] = torch.cuda.max_memory_allocated()
    return memory
