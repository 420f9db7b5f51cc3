"""`upmix bench train`: contestants in processes of their own, in turns."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from framework.bench.contestant import OURS, Contestant
from framework.bench.results import Measured, StepBenchmark, summarize
from framework.training.preconditions import mesh_sizes

if TYPE_CHECKING:
    import torch

    from framework.recipe import Loaded

WARM_UP_STEPS = 2
OVERHEAD_ROUNDS = 5
ROUTINGS = ("both", "real", "balanced")

Ask = Callable[..., dict[str, Any]]
"""Asks a contestant for a method of `ours.Ours` (or, of peers, `peer.Peer`) by name; returns what it does."""


@dataclass(frozen=True)
class Options:
    """num_steps: of a round. num_rounds: of each contestant, in turns. peers: names of `peers.PEERS`.

    routing: of ROUTINGS. "both": rounds with the router's own choices, and further ones with choices forced even.
    """

    num_steps: int = 5
    num_rounds: int = 7
    peers: tuple[str, ...] = ()
    routing: str = "both"

    def num_turns(self, loaded: Loaded) -> int:
        """How often `measure` reports progress."""
        contestants = 1 + len(self.peers)
        further = self.num_rounds if self.adds_balanced(loaded) else 0
        return contestants * (1 + self.num_rounds) + further + 2

    @property
    def compared(self) -> str:
        """The routing of the rounds that count first: real or balanced."""
        return "balanced" if self.routing == "balanced" else "real"

    def adds_balanced(self, loaded: Loaded) -> bool:
        """Whether rounds with even routing follow the others."""
        has_experts = any(sublayer.kind == "moe" for sublayer in loaded.architecture.sublayers())
        return self.routing == "both" and has_experts


def bench_train(
    name: str, overrides: Sequence[str], loaded: Loaded, options: Options, advance: Callable[[], None] = lambda: None
) -> StepBenchmark:
    """Measure a recipe, each contestant in a process (each rank, with several) of as many threads as the others'.

    name, overrides: what `loaded` was loaded of. advance: called after each of `options.num_turns` turns.
    Raises UserError where a peer cannot express the recipe, or is not installed, and ContestantFailure.
    """
    world = mesh_sizes(loaded.recipe.parallel).world
    threads = os.environ.get("OMP_NUM_THREADS") or str(max(1, len(os.sched_getaffinity(0)) // world))
    with ExitStack() as stack:
        contestants = [stack.enter_context(Contestant(each, name, overrides, threads))
                       for each in (*options.peers, OURS)]
        asked = {contestant.name: contestant.ask for contestant in contestants}
        measured = measure(asked, loaded, options, advance)
        waited = [contestant.ask("waited") for contestant in contestants] if options.peers else []
    share = sum(each["cpu_seconds"] for each in waited) / sum(each["seconds"] for each in waited) if waited else None
    return summarize(measured, name, overrides, loaded, options.num_steps, options.compared, share)


def bench_as_rank(
    name: str, overrides: Sequence[str], loaded: Loaded, options: Options, device: torch.device
) -> StepBenchmark:
    """The same without peers, as one rank of those that torchrun or srun started. Collective."""
    from framework.bench.ours import Ours

    ours = Ours(loaded, device)
    measured = measure({OURS: lambda do, **details: getattr(ours, do)(**details)}, loaded, options)
    return summarize(measured, name, overrides, loaded, options.num_steps, options.compared)


def measure(
    asked: Mapping[str, Ask], loaded: Loaded, options: Options, advance: Callable[[], None] = lambda: None
) -> Measured:
    """Ask contestants for their rounds in turns, ours (named OURS) before each peer's, and ours for the rest."""
    order = {OURS: asked[OURS], **asked}
    even = {"balanced": True} if options.compared == "balanced" else {}
    first = {name: ask("warm_up", num_steps=WARM_UP_STEPS)["loss"] for name, ask in _each(asked.items(), advance)}
    rounds: dict[str, list[dict[str, Any]]] = {name: [] for name in order}
    for _ in range(options.num_rounds):
        for name, ask in _each(order.items(), advance):
            rounds[name].append(ask("round", num_steps=options.num_steps, **(even if name == OURS else {})))
    facts = {name: ask("facts") for name, ask in order.items()}
    ours = asked[OURS]
    phases = ours("phases", num_steps=options.num_steps, **even)
    advance()
    overhead = ours("overhead", num_rounds=OVERHEAD_ROUNDS, num_steps=options.num_steps)["rounds"]
    advance()
    num_even = options.num_rounds if options.adds_balanced(loaded) else 0
    even_rounds = [ours("round", num_steps=options.num_steps, balanced=True) for _ in _each(range(num_even), advance)]
    return Measured(rounds, even_rounds, first, facts, phases, overhead)


def _each(items: Iterable[Any], advance: Callable[[], None]) -> Iterator[Any]:
    """The items, with a step of progress after each."""
    for item in items:
        yield item
        advance()
