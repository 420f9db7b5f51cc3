"""Every layout of a cluster that a recipe can take, the fastest first."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import prod, sqrt
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from framework.errors import UserError
from framework.files import write_atomically
from framework.plan.outline import Outline
from framework.plan.plan import Plan, plan_outline, require_planned
from framework.recipe.check import check
from framework.recipe.errors import COMMAND_LINE, RecipeError
from framework.recipe.files import SUFFIXES
from framework.recipe.yaml_reader import plain, read_yaml

if TYPE_CHECKING:
    from framework.plan.machine import Cluster
    from framework.recipe import Loaded, Recipe

BEST = 10


@dataclass(frozen=True)
class Candidate:
    """A layout that a recipe can take. recipe: with this layout."""

    recipe: Recipe
    plan: Plan

    @property
    def seconds(self) -> float:
        """Between the longest and the shortest time of a step, as many times below the one as above the other."""
        return sqrt(prod(self.plan.timing.step_seconds))

    @property
    def micro_batch_size(self) -> int:
        return self.recipe.data.micro_batch_size

    @property
    def reasons(self) -> str:
        """What the layout costs."""
        timing, memory = self.plan.timing, self.plan.cluster.machine.memory
        sends = [f"{row.axis} {row.seconds:.3g} s" for row in self.plan.traffic if row.seconds > 0]
        idle = [f"waits {timing.bubble:.0%} in the pipeline"] if timing.bubble else []
        return "; ".join([f"{self.plan.needed / 1e9:.0f} of {memory / 1e9:.0f} GB", *idle,
                          f"sends {', '.join(sends)}" if sends else "sends nothing"])


@dataclass(frozen=True)
class Found:
    """best: those that fit, the fastest first, at most BEST. num_tried: that the recipe's checks let pass. num_fitting:
    of these."""

    best: list[Candidate]
    num_tried: int
    num_fitting: int

    def as_json(self) -> dict[str, Any]:
        """Plain values; `best` with each layout's plan."""
        return {"num_tried": self.num_tried, "num_fitting": self.num_fitting, "best": [
            {"micro_batch_size": each.micro_batch_size, "reasons": each.reasons, **each.plan.as_json()}
            for each in self.best
        ]}


def search(loaded: Loaded, cluster: Cluster, advance: Callable[[], None] = lambda: None) -> Found:
    """All degrees whose product is the cluster's, with every ep that divides, under the recipe's own checks.

    Schedule, batch and recomputation stay the recipe's. Micro-batches are at most its own, and small enough that a
    pipeline has one for each rank. advance: called after each. Raises UserError where nothing fits, with what came
    nearest.
    """
    require_planned(loaded)
    tried = []
    for each in _layouts(loaded, cluster):
        tried.append(Candidate(each.recipe, plan_outline(each, cluster)))
        advance()
    if not tried:
        raise UserError(f"--on {cluster.name}: no layout of {cluster.num_gpus} ranks passes the recipe's checks; "
                        "allowed: another number of GPUs, or another data.batch_size")
    fitting = sorted((each for each in tried if each.plan.fits), key=lambda each: each.seconds)
    if not fitting:
        least = min(tried, key=lambda each: each.plan.needed)
        raise UserError(f"--on {cluster.name}: none of {len(tried)} layouts fits; the least needs "
                        f"{least.plan.needed / 1e9:.1f} GB of {cluster.machine.memory / 1e9:.0f} ({describe(least)}); "
                        "allowed: more GPUs, training.recompute, or a smaller data.micro_batch_size")
    return Found(fitting[:BEST], len(tried), len(fitting))


def describe(candidate: Candidate) -> str:
    """A layout in words, axes of degree 1 left out."""
    degrees = [f"{axis} {degree}" for axis, degree in candidate.plan.layout.items() if degree > 1]
    return ", ".join([*degrees, f"micro-batch {candidate.micro_batch_size}"])


def write(candidate: Candidate, name: str, overrides: Sequence[str], path: Path) -> None:
    """A recipe file that extends another, by name or file, by its overrides and the layout."""
    document: dict[str, Any] = {"description": f"{name} on {candidate.plan.cluster.name}"}
    document["extends"] = str(Path(name).resolve()) if Path(name).suffix in SUFFIXES else name
    for key, value in (*_values(overrides), ("data.micro_batch_size", candidate.micro_batch_size),
                       *((f"parallel.{axis}", degree) for axis, degree in candidate.plan.layout.items())):
        *sections, field = key.split(".")
        section = document
        for each in sections:
            section = section.setdefault(each, {})
        section[field] = value
    write_atomically(path, yaml.safe_dump(document, sort_keys=False, width=120))


def _values(overrides: Sequence[str]) -> Iterator[tuple[str, Any]]:
    for override in overrides:
        key, _, text = override.partition("=")
        yield key, plain(read_yaml(text, COMMAND_LINE.place, 0, numbered=False))


def _layouts(loaded: Loaded, cluster: Cluster) -> Iterator[Outline]:
    recipe, outline = loaded.recipe, Outline.of(loaded)
    experts = {sub.settings.num_experts for sub in loaded.architecture.sublayers() if sub.kind == "moe"}
    for dp_replicate, dp_shard, cp, tp, pp in _products(cluster.num_gpus, 5):
        share, rest = divmod(recipe.data.batch_size, dp_replicate * dp_shard)
        if rest or share < pp:
            continue
        limit = min(recipe.data.micro_batch_size or share, share // pp)
        micro = max(size for size in range(1, limit + 1) if share % size == 0)
        data = recipe.data.model_copy(update={"micro_batch_size": micro})
        for ep in _divisors(dp_shard * cp * tp) if experts else [1]:
            if any(number % ep for number in experts):
                continue
            degrees = {"dp_replicate": dp_replicate, "dp_shard": dp_shard, "cp": cp, "tp": tp, "pp": pp, "ep": ep}
            parallel = recipe.parallel.model_copy(update=degrees)
            tried = recipe.model_copy(update={"data": data, "parallel": parallel})
            try:
                check(tried, loaded.architecture)
            except RecipeError:
                break  # no check but that of its divisors, which have been seen to, asks for ep
            yield outline.with_recipe(tried)


def _products(number: int, length: int) -> Iterator[tuple[int, ...]]:
    """All ways to write a number as a product of so many factors, in order."""
    if length == 1:
        yield (number,)
        return
    for first in _divisors(number):
        for others in _products(number // first, length - 1):
            yield first, *others


def _divisors(number: int) -> list[int]:
    return [divisor for divisor in range(1, number + 1) if number % divisor == 0]
