"""What a benchmark of training says: medians, ratios and shares of what was measured."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import TYPE_CHECKING, Any

from framework.bench.contestant import OURS
from framework.bench.flops import flops_by_part
from framework.bench.machine import describe_code, describe_machine
from framework.training.preconditions import mesh_sizes

if TYPE_CHECKING:
    from framework.recipe import Loaded


@dataclass(frozen=True)
class Measured:
    """What contestants answered: rounds by contestant, those of ours with even routing apart."""

    rounds: dict[str, list[dict[str, Any]]]
    even_rounds: list[dict[str, Any]]
    first_losses: dict[str, float]
    facts: dict[str, dict[str, Any]]
    phases: dict[str, Any]
    overhead_rounds: list[float] | None


@dataclass(frozen=True)
class Rates:
    """Tokens per second over all ranks: of each round, their median, and the spread."""

    tokens_per_second: float
    lowest: float
    highest: float
    rounds: list[float]


@dataclass(frozen=True)
class PeerResult(Rates):
    """ratios: of tokens per second, ours over the peer's, of each pair of neighbouring rounds.

    first_loss_difference: theirs less ours in the first step, nats a token. Weights begin alike in hf, not in megatron.
    """

    ratios: list[float]
    median_ratio: float
    first_loss_difference: float
    model: str
    package: str
    peak_memory_bytes: int


@dataclass(frozen=True)
class StepBenchmark:
    """What `upmix bench train --json` prints.

    tokens_per_second, lowest, highest: median and spread over rounds. peak_flops_per_second: measured here, one large
    matrix product on every rank's device. mfu: model_flops_per_second over it, rows that experts did not compute left
    out. routing: of these rounds, real or balanced. imbalance: rows of the fullest expert over the mean, of the worst
    layer. rows_per_choice: that experts computed, over tokens * top_k. balanced: rates with even routing.
    flops_per_token: by part. phases: see `ours.Ours.phases`. overhead: median time of the trainer's step over a bare
    loop's, less one. waiting_cpu_share: of a core, that a contestant took while another had its turn.
    """

    recipe: str
    overrides: list[str]
    machine: dict[str, Any]
    commit: str
    uncommitted_changes: bool
    torch: str
    device: str
    dtype: str
    num_ranks: int
    num_threads: int
    num_steps: int
    routing: str
    tokens_per_second: float
    tokens_per_second_per_rank: float
    lowest: float
    highest: float
    rounds: list[float]
    model_flops_per_second: float
    peak_flops_per_second: float
    mfu: float
    peak_memory_bytes: int
    flops_per_token: dict[str, float]
    imbalance: float | None
    dropped_fraction: float | None
    rows_per_choice: float | None
    balanced: dict[str, Any] | None
    phases: dict[str, Any]
    overhead: float | None
    overhead_rounds: list[float] | None
    waiting_cpu_share: float | None
    peers: dict[str, dict[str, Any]] = field(default_factory=dict)


def summarize(
    measured: Measured, name: str, overrides: Iterable[str], loaded: Loaded, num_steps: int, routing: str,
    waiting_cpu_share: float | None = None,
) -> StepBenchmark:
    """The result; routing: of the rounds that are compared."""
    recipe, world = loaded.recipe, mesh_sizes(loaded.recipe.parallel).world
    ours, facts = measured.rounds[OURS], measured.facts[OURS]
    rates, machine, code = rates_of(ours), describe_machine() | {"gpu": facts["gpu"]}, describe_code()
    flops = flops_by_part(loaded.architecture, recipe.data.seq_len, _mean(ours, "rows_per_choice") or 1.0)
    per_second = rates.tokens_per_second * sum(flops.values())
    return StepBenchmark(
        recipe=name, overrides=list(overrides), machine=machine, **code, torch=facts["torch"], device=facts["device"],
        dtype=recipe.training.dtype, num_ranks=world, num_threads=facts["num_threads"], num_steps=num_steps,
        routing=routing, **asdict(rates),
        tokens_per_second_per_rank=rates.tokens_per_second / world, model_flops_per_second=per_second,
        peak_flops_per_second=facts["peak_flops_per_second"], mfu=per_second / facts["peak_flops_per_second"],
        peak_memory_bytes=facts["peak_memory_bytes"], flops_per_token=flops, **_routing(ours),
        balanced=asdict(rates_of(measured.even_rounds)) | _routing(measured.even_rounds)
        if measured.even_rounds else None,
        phases=measured.phases, overhead_rounds=measured.overhead_rounds,
        overhead=None if measured.overhead_rounds is None else median(measured.overhead_rounds),
        waiting_cpu_share=waiting_cpu_share,
        peers={peer: asdict(_peer(measured, peer, rates)) for peer in measured.rounds if peer != OURS},
    )


def rates_of(rounds: Sequence[Mapping[str, Any]]) -> Rates:
    """Of rounds with `tokens` and `seconds`."""
    rates = [each["tokens"] / each["seconds"] for each in rounds]
    return Rates(median(rates), min(rates), max(rates), rates)


def _peer(measured: Measured, name: str, ours: Rates) -> PeerResult:
    rates, facts = rates_of(measured.rounds[name]), measured.facts[name]
    ratios = [mine / theirs for mine, theirs in zip(ours.rounds, rates.rounds, strict=True)]
    return PeerResult(
        **asdict(rates), ratios=ratios, median_ratio=median(ratios), **facts,
        first_loss_difference=measured.first_losses[name] - measured.first_losses[OURS],
    )


def _routing(rounds: Sequence[Mapping[str, Any]]) -> dict[str, float | None]:
    return {name: _mean(rounds, name) for name in ("imbalance", "dropped_fraction", "rows_per_choice")}


def _mean(rounds: Sequence[Mapping[str, Any]], name: str) -> float | None:
    values = [each[name] for each in rounds]
    return None if None in values else sum(values) / len(values)
