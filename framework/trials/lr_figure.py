"""The picture of a learning-rate transfer: loss over learning rate, a line for each width."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib import colormaps

from framework.report.figure import figure
from framework.trials.lr_transfer import Optimum, Point


def draw_transfer(points: Sequence[Point], optima: Sequence[Optimum], title: str, path: Path) -> None:
    """Draw the mean over seeds with the seeds' range, and a ring at each width's best; diverged runs are left out."""
    losses: dict[int, dict[float, list[float]]] = defaultdict(lambda: defaultdict(list))
    for point in points:
        losses[point.width][point.lr].append(point.loss)
    fig, (panel,) = figure()
    widths = sorted(losses)
    for width, colour in zip(widths, colormaps["viridis"](np.linspace(0.9, 0, len(widths))), strict=True):
        lrs = [lr for lr in sorted(losses[width]) if math.isfinite(sum(losses[width][lr]))]
        means = [np.mean(losses[width][lr]) for lr in lrs]
        panel.plot(lrs, means, "o-", color=colour, markersize=3, label=f"d_model {width}")
        panel.fill_between(lrs, [min(losses[width][lr]) for lr in lrs], [max(losses[width][lr]) for lr in lrs],
                           color=colour, alpha=0.15, linewidth=0)
    panel.plot([best.lr for best in optima], [best.loss for best in optima], "o", color="crimson", markersize=8,
               fillstyle="none", linestyle="none", label="best")
    panel.set_xscale("log", base=2)
    panel.set_xlabel("peak learning rate at base width")
    panel.set_ylabel("training loss of the last tenth, nats a token")
    panel.set_title(title, fontsize=9)
    panel.legend(fontsize=7)
    fig.savefig(path)
