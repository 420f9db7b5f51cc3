"""Tokens per second of whole optimizer steps, data and update included, alone or beside peers in interleaved pairs."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING

import torch

from framework.bench.huggingface import twin_steps
from framework.bench.peak import peak_flops_per_second, synchronize
from framework.bench.steps import make_trainer, training_steps
from framework.recipe import sizes

if TYPE_CHECKING:
    from framework.recipe import Loaded

WARM_UP_STEPS = 2


@dataclass(frozen=True)
class StepBenchmark:
    """Rates are medians over pairs (rounds, without peers).

    peak_flops_per_second: measured here, one large matrix product on every rank's device. mfu: model FLOP/s over it.
    ratios: of tokens per second, ours over the peer's, a pair each.
    """

    tokens_per_second: float
    model_flops_per_second: float
    peak_flops_per_second: float
    mfu: float
    num_threads: int
    peers: dict[str, dict[str, object]]


def bench_train(
    loaded: Loaded, device: torch.device, num_steps: int, num_pairs: int, compare: str | None,
    report: Callable[[str], None] = lambda line: None,
) -> StepBenchmark:
    """Time `num_pairs` rounds of `num_steps` steps, a round of ours before each round of the peer's.

    Collective over the ranks of the recipe's layout. compare: "hf" or None; only on one rank.
    Raises UserError where the peer cannot express the recipe or is not installed.
    """
    recipe = loaded.recipe
    trainer = make_trainer(loaded, device)
    contenders = {"upmix": training_steps(trainer)}
    if compare == "hf":
        contenders["hf"] = twin_steps(loaded, trainer.data.train, device)
    tokens = num_steps * recipe.data.batch_size * recipe.data.seq_len
    rates: dict[str, list[float]] = {name: [] for name in contenders}
    for step in contenders.values():
        _seconds(step, WARM_UP_STEPS, device)
    for number in range(num_pairs):
        for name, step in contenders.items():
            rates[name].append(tokens / _seconds(step, num_steps, device))
        report(f"round {number + 1}: " + ", ".join(f"{name} {rate[-1]:,.0f} tokens/s" for name, rate in rates.items()))
    return _summary(loaded, device, rates)


def _summary(loaded: Loaded, device: torch.device, rates: dict[str, list[float]]) -> StepBenchmark:
    recipe = loaded.recipe
    ours = rates.pop("upmix")
    rate = median(ours)
    flops = rate * sizes(loaded.architecture, recipe.data.seq_len)["flops_per_token"]
    peak = peak_flops_per_second(device, getattr(torch, recipe.training.dtype)) * torch.distributed.get_world_size()
    peers = {
        name: {"tokens_per_second": median(theirs), "ratios": [a / b for a, b in zip(ours, theirs, strict=True)],
               "median_ratio": median(a / b for a, b in zip(ours, theirs, strict=True))}
        for name, theirs in rates.items()
    }
    return StepBenchmark(rate, flops, peak, flops / peak, torch.get_num_threads(), peers)


def _seconds(step: Callable[[], None], num_steps: int, device: torch.device) -> float:
    synchronize(device)
    begin = time.perf_counter()
    for _ in range(num_steps):
        step()
    synchronize(device)
    return time.perf_counter() - begin
