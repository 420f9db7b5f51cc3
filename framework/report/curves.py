"""Curves of metrics over steps, tokens, or tokens per active parameter; runs that differ by seed share one band."""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from framework.errors import UserError
from framework.report.figure import figure
from framework.report.runs import Run

AXES = {"steps": "optimizer steps", "tokens": "tokens", "tokens_per_param": "tokens / active parameters"}
LOSSES = ("loss", "val_bits_per_byte")
EVALUATED = "val_"


def positions(run: Run, metric: str, axis: str) -> tuple[np.ndarray, np.ndarray]:
    """(x, values) of one run's metric along an axis of AXES."""
    steps, values = run.series(metric)
    return along(run, steps, axis), values


def along(run: Run, steps: np.ndarray, axis: str) -> np.ndarray:
    """Where steps of a run lie on an axis of AXES. Raises UserError for another axis."""
    if axis not in AXES:
        raise UserError(f"axis {axis!r} is not known; allowed: {', '.join(AXES)}")
    if axis == "steps":
        return steps
    tokens = run.tokens_at(steps)
    return tokens / run.sizes["params_active"] if axis == "tokens_per_param" else tokens


def groups(runs: Sequence[Run]) -> list[list[Run]]:
    """Runs that differ in nothing but the seed, together; in the order given."""
    found: dict[str, list[Run]] = defaultdict(list)
    for run in runs:
        found[run.without_seed()].append(run)
    return list(found.values())


def mean_and_spread(
    runs: Sequence[Run], metric: str, axis: str
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """(x, mean, lowest, highest) over the runs of one group, at the points that all of them have reached."""
    curves = [positions(run, metric, axis) for run in runs]
    common = sorted(set.intersection(*(set(x.tolist()) for x, _ in curves)))
    rows = np.stack([[dict(zip(x.tolist(), y.tolist(), strict=True))[at] for at in common] for x, y in curves])
    return np.array(common), rows.mean(0), rows.min(0), rows.max(0)


def draw_curves(runs: Sequence[Run], out: Path, axis: str = "steps", metrics: Sequence[str] = LOSSES) -> Path:
    """One panel a metric, one line a group of seeds (its mean; the band spans lowest to highest). Returns `out`.

    Raises UserError where no run holds any of the metrics.
    """
    shown = [metric for metric in metrics if any(len(run.series(metric)[0]) for run in runs)]
    if not shown:
        raise UserError(f"none of the runs holds a value of {', '.join(metrics)}")
    fig, panels = figure(columns=len(shown))
    for panel, metric in zip(panels, shown, strict=True):
        for group in groups(runs):
            x, mean, low, high = mean_and_spread(group, metric, axis)
            label = group[0].name if len(group) == 1 else f"{group[0].name} ({len(group)} seeds)"
            line, = panel.plot(x, mean, label=label, linewidth=1.2, marker="o" if metric.startswith(EVALUATED) else "",
                               markersize=3)
            if len(group) > 1:
                panel.fill_between(x, low, high, color=line.get_color(), alpha=0.2, linewidth=0)
        panel.set(xlabel=AXES[axis], title=metric.replace("_", " "))
        panel.grid(alpha=0.25)
        panel.legend(fontsize=7)
    fig.savefig(out)
    return out
