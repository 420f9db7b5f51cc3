"""A benchmark of training as text."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from framework.bench.results import StepBenchmark


def lines(found: StepBenchmark) -> Iterator[str]:
    """What `upmix bench train` prints."""
    yield from _conditions(found)
    yield from _rates(found)
    yield from _phases(found)
    yield from _flops(found)


def _conditions(found: StepBenchmark) -> Iterator[str]:
    machine = found.machine
    where = machine["gpu"] or f"{machine['cpu']}, {machine['cores']} cores"
    commit = found.commit[:12] + (" and changes" if found.uncommitted_changes else "")
    yield f"{' '.join([found.recipe, *found.overrides])} on {where}"
    yield (f"{found.num_ranks} rank{'s' if found.num_ranks > 1 else ''} of {found.num_threads} threads, {found.dtype}, "
           f"torch {found.torch}, commit {commit}")


def _rates(found: StepBenchmark) -> Iterator[str]:
    def row(name: str, rates: dict, more: str = "") -> str:
        spread = f"{rates['lowest']:,.0f} to {rates['highest']:,.0f}"
        return f"{name:<20}{rates['tokens_per_second']:>10,.0f}   {spread:<20}{more}".rstrip()

    rounds = f"{len(found.rounds)} rounds of {found.num_steps} steps"
    yield f"\n{'tokens a second':<20}{'median':>10}   {'spread':<20}{rounds}"
    per_rank = f"{found.tokens_per_second_per_rank:,.0f} a rank" if found.num_ranks > 1 else ""
    yield row("upmix", vars(found), per_rank)
    for name, peer in found.peers.items():
        yield row(name, peer, f"upmix is {peer['median_ratio']:.2f} times as fast ({min(peer['ratios']):.2f} to "
                              f"{max(peer['ratios']):.2f}); {peer['model']}, {peer['package']}")
    if found.balanced:
        yield row("balanced routing", found.balanced)
    if found.imbalance is not None:
        yield (f"{found.routing} routing: the fullest expert has {found.imbalance:.2f} times the mean; "
               f"{found.dropped_fraction:.1%} of rows dropped")
    yield (f"{found.model_flops_per_second / 1e9:,.1f} model GFLOP/s, MFU {found.mfu:.1%} of the "
           f"{found.peak_flops_per_second / 1e9:,.1f} GFLOP/s of a large matrix product here")
    peers = "".join(f", {name} {peer['peak_memory_bytes'] / 1e9:.2f}" for name, peer in found.peers.items())
    yield f"peak memory, GB: upmix {found.peak_memory_bytes / 1e9:.2f}{peers}"
    if found.overhead is not None:
        rounds = found.overhead_rounds
        yield (f"over a bare loop of the same blocks: {found.overhead:+.1%} ({min(rounds):+.1%} to {max(rounds):+.1%}, "
               f"{len(rounds)} rounds)")


def _phases(found: StepBenchmark) -> Iterator[str]:
    step = found.phases["step_seconds"]
    yield f"\n{'phase':<20}{'ms a step':>10}{'share':>8}"
    for name, seconds in found.phases["seconds"].items():
        yield f"{name:<20}{seconds * 1e3:>10.2f}{seconds / step:>8.1%}"
    yield f"{'step':<20}{step * 1e3:>10.2f}"
    if (under_way := found.phases["communication_seconds"]) is not None:
        yield f"{'communication':<20}{under_way * 1e3:>10.2f}{under_way / step:>8.1%}   under way within the phases"


def _flops(found: StepBenchmark) -> Iterator[str]:
    whole = sum(found.flops_per_token.values())
    yield f"\n{'part':<20}{'MFLOP a token':>14}{'share':>8}"
    for name, flops in found.flops_per_token.items():
        yield f"{name:<20}{flops / 1e6:>14.3f}{flops / whole:>8.1%}"
    yield f"{'whole model':<20}{whole / 1e6:>14.3f}"
