"""Whether the best learning rate of a narrow model is that of a wide one: a grid of runs, and where its minima are."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from framework.trials.over_widths import refuse_given
from framework.trials.runs import Trial, loss_of, run_trials


@dataclass(frozen=True)
class Point:
    """One run of the grid: its place, and its training loss over its last tenth in nats a token (inf: diverged)."""

    width: int
    lr: float
    seed: int
    loss: float


@dataclass(frozen=True)
class Optimum:
    """The best of a width's learning rates, by the mean loss over seeds.

    lr: of the grid; index: its place there. refined: the minimum of the parabola in log2(lr) through it and its two
    neighbours, lr itself at the grid's edge or beside a run that diverged. at_edge: the best may lie outside the grid.
    """

    width: int
    lr: float
    index: int
    loss: float
    refined: float
    at_edge: bool


def grid(
    recipe: str, overrides: Sequence[str], widths: Sequence[int], lrs: Sequence[float], seeds: Sequence[int]
) -> dict[tuple[int, float, int], Trial]:
    """The trial of each (width, learning rate, seed), narrow ones first. Raises UserError for fields given twice."""
    refuse_given(overrides, {"model.d_model": "--widths", "optim.lr": "--lrs", "training.seed": "--seeds"})
    return {
        (width, lr, seed): Trial(
            f"width_{width}_lr_{lr:g}_seed_{seed}", recipe,
            (*overrides, f"model.d_model={width}", f"optim.lr={lr!r}", f"training.seed={seed}", "training.slides=[]"),
        )
        for width in widths for seed in seeds for lr in lrs
    }


def run_grid(trials: Mapping[tuple[int, float, int], Trial], runs_dir: Path, at_once: int) -> Iterable[Point]:
    """Yield the point of each trial as it ends. Raises UserError as `run_trials`."""
    place = {trial: key for key, trial in trials.items()}
    for trial in run_trials(list(trials.values()), runs_dir, at_once):
        yield Point(*place[trial], loss_of(trial, runs_dir))


def optima(points: Iterable[Point]) -> list[Optimum]:
    """Where the loss of each width is lowest, narrow ones first; of widths at which any run ended with a number."""
    losses: dict[int, dict[float, list[float]]] = defaultdict(lambda: defaultdict(list))
    for point in points:
        losses[point.width][point.lr].append(point.loss)
    found = []
    for width in sorted(losses):
        lrs = sorted(losses[width])
        means = [float(np.mean(losses[width][lr])) for lr in lrs]
        best = int(np.argmin(means))
        if math.isfinite(means[best]):
            edge = best in (0, len(lrs) - 1)
            refined = lrs[best] if edge else _vertex(lrs[best - 1 : best + 2], means[best - 1 : best + 2])
            found.append(Optimum(width, lrs[best], best, means[best], refined, edge))
    return found


def steps_moved(found: Sequence[Optimum]) -> int:
    """How many steps of the grid lie between the lowest and the highest best rate of all widths."""
    indices = [optimum.index for optimum in found]
    return max(indices) - min(indices)


def _vertex(lrs: Sequence[float], losses: Sequence[float]) -> float:
    """The minimum of the parabola through three points over log2(lr); the middle one where a loss is infinite."""
    if not all(map(math.isfinite, losses)):
        return lrs[1]
    curvature, slope, _ = np.polyfit(np.log2(lrs), losses, 2)
    return float(2 ** (-slope / (2 * curvature))) if curvature > 0 else lrs[1]
