"""The picture of a search for rates: losses in the order of trials, and the ratios that it came to."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from framework.report.figure import figure

if TYPE_CHECKING:
    from framework.trials.rate_tuning import Tuning


def draw_search(tuning: Tuning, path: Path) -> None:
    """Two panels: loss of every trial, accepted ones marked (diverged runs lie at the top edge as crosses); found
    values as bars on a logarithmic axis, relative rates as they are, other fields over their starting value."""
    progress, fields = tuning.progress, tuning.searched.fields
    fig, (left, right) = figure(columns=2)
    fig.set_figheight(max(fig.get_figheight(), 1.2 + 0.24 * len(fields)))
    losses = {number: tuning.losses[point] for number, point in enumerate(progress.trials) if point in tuning.losses}
    _draw_losses(left, losses, [progress.trials.index(point) for point in progress.accepted])
    names = [field.name if field.is_ratio else f"{field.name} / {field.start:g}" for field in fields]
    found = [field.value(times) / (1 if field.is_ratio else field.start)
             for field, times in zip(fields, progress.best, strict=True)]
    bars = right.barh(range(len(fields)), [value - 1 for value in found], left=1, height=0.7,
                      color=["tab:red" if value > 1 else "tab:blue" for value in found])
    right.bar_label(bars, [f"{value:.3g}" for value in found], padding=3, fontsize=7)
    right.set_xscale("log")
    right.set_xlim(min(*found, 0.5) / 2, max(*found, 2.0) * 2)
    right.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    right.xaxis.set_major_formatter(FuncFormatter(lambda value, position: f"{value:g}"))
    right.xaxis.set_minor_formatter(NullFormatter())
    right.tick_params(axis="x", labelsize=7)
    right.set_yticks(range(len(fields)), names, fontsize=8)
    right.invert_yaxis()
    right.axvline(1, color="black", linewidth=0.8)
    right.set_xlabel("relative rates; other fields over where they started")
    fig.suptitle(f"{tuning.searched.recipe}: {len(losses)} trials, pass {progress.number}"
                 + (", which changed nothing" if progress.converged else ""))
    fig.savefig(path)


def _draw_losses(panel, losses: dict[int, float], accepted: list[int]) -> None:
    finite = {number: loss for number, loss in losses.items() if math.isfinite(loss)}
    best = {number: finite[number] for number in accepted if number in finite}
    panel.plot(list(finite), list(finite.values()), ".", color="tab:gray", label="trial")
    panel.plot(list(best), list(best.values()), "o", color="tab:red", label="became the best")
    if best:
        steps = [*best, max(losses)]
        panel.step(steps, [*best.values(), list(best.values())[-1]], where="post", color="tab:red", linewidth=1)
    diverged = [number for number in losses if number not in finite]
    panel.plot(diverged, [1.0] * len(diverged), "x", color="black", transform=panel.get_xaxis_transform(),
               clip_on=False, label="diverged" if diverged else None)
    panel.xaxis.set_major_locator(MaxNLocator(integer=True))
    panel.set(xlabel="trial", ylabel="training loss at the end")
    panel.grid(alpha=0.25)
    panel.legend(fontsize=7)
