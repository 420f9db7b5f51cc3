"""The picture of a coordinate check: a panel for each role, how far it moved over widths, a line for each step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.ticker import NullFormatter, ScalarFormatter

from framework.report.figure import figure
from framework.trials.coordinates import JUDGED, Sizes, Slope

COLUMNS = 4


def draw_coordinates(measured: Mapping[int, Sequence[Sizes]], slopes: Sequence[Slope], title: str, path: Path) -> None:
    """Draw mean |x_t - x_0| of every role over widths, early steps dark and late ones light; seeds are averaged."""
    judged = [slope for slope in slopes if slope.quantity == JUDGED]
    fig, panels = figure(COLUMNS, -(-len(judged) // COLUMNS))
    widths = sorted(measured)
    num_steps = len(measured[widths[0]][0][JUDGED, judged[0].role])
    colours = colormaps["viridis"](np.linspace(0, 0.9, num_steps))
    for slope, panel in zip(judged, panels, strict=False):
        for step, colour in enumerate(colours):
            sizes = [np.mean([seed[JUDGED, slope.role][step] for seed in measured[width]]) for width in widths]
            panel.plot(widths, sizes, "o-", color=colour, markersize=3, linewidth=1)
        panel.set_xscale("log", base=2)
        panel.set_yscale("log")
        panel.set_xticks(widths)
        panel.xaxis.set_major_formatter(ScalarFormatter())
        panel.yaxis.set_minor_formatter(NullFormatter())
        verdict = "" if slope.passes else ", moves with width"
        panel.set_title(f"{slope.role}: slope {slope.slope:+.2f}{verdict}", fontsize=9,
                        color="black" if slope.passes else "crimson")
    for panel in panels[len(judged):]:
        panel.set_visible(False)
    fig.suptitle(title)
    fig.supxlabel("d_model")
    fig.supylabel(f"mean |x_t - x_0|, steps t = 1 (dark) to {num_steps} (light)")
    fig.savefig(path)
