"""Pictures of laws: curves over a range, and a fit beside its runs."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from framework.files import writable
from framework.laws.compare import Comparison
from framework.laws.fit.fit_runs import FittedRuns
from framework.report.figure import figure

AXES = {
    "flops": "training FLOPs",
    "tokens": "training tokens",
    "num_params": "parameters",
    "num_params_active": "active parameters",
    "num_params_total": "total parameters",
    "num_experts": "experts",
    "granularity": "granularity",
    "memory_bytes": "memory (bytes)",
    "inference_tokens": "inference tokens",
    "num_replicas": "replicas",
}
STYLES = {"num_params_active": "-", "tokens": "--"}
POINTS_PER_DECADE = 12


def draw_comparison(comparison: Comparison, out: Path) -> Path:
    """Loss over the range; where best models are meant, their sizes and tokens too. Returns `out`."""
    best = [curve.takes_optimum(comparison.over) for curve in comparison.curves]
    columns = 1 + any(best) + bool(comparison.savings and len(best) > 1)
    fig, panels = figure(columns=columns)
    for place, curve in enumerate(comparison.curves):
        values = [row[place].values for row in comparison.answers]
        losses = [each["loss"] for each in values]
        line, = panels[0].plot(comparison.points, losses, label=curve.label, linewidth=1.6)
        color = line.get_color()
        if (ends := [row[place].interval for row in comparison.answers])[0] is not None:
            panels[0].fill_between(comparison.points, *zip(*ends, strict=True), color=color, alpha=0.2, linewidth=0)
        if best[place]:
            for name, style in STYLES.items():
                panels[1].plot(comparison.points, [each[name] for each in values], style, color=color, linewidth=1.4)
        if columns == 3:
            saving = [np.nan if row[place] is None else row[place] for row in comparison.savings]
            panels[2].plot(comparison.points, saving, color=color, label=curve.label, linewidth=1.6)
    label = AXES.get(comparison.over, comparison.over.replace("_", " "))
    panels[0].set(ylabel="loss (nats a token)", title="loss of the best model" if all(best) else "loss")
    if any(best):
        panels[1].set(ylabel="parameters, tokens", title="the best model", yscale="log")
        for name, style in STYLES.items():
            panels[1].plot([], [], style, color="grey", label=AXES[name])
    if columns == 3:
        panels[2].set(ylabel=f"FLOPs of {comparison.curves[0].label}\nfor the same loss / FLOPs spent",
                      title="saving", yscale="log" if _spans_much(comparison.savings) else "linear")
    for panel in panels:
        panel.set(xlabel=label, xscale="log")
        panel.grid(alpha=0.25)
        panel.legend(fontsize=7)
    with writable(out, "--out a file that may be written"):
        fig.savefig(out)
    return out


def _spans_much(savings: list[list[float | None]]) -> bool:
    found = [value for row in savings for value in row if value is not None]
    return max(found) > 5 * min(found)


def draw_fit(fitted: FittedRuns, out: Path) -> Path:
    """Predicted over measured losses, those held out marked, and the residuals. Returns `out`."""
    measured, predicted = fitted.measured, fitted.predicted
    held = np.zeros(len(measured), dtype=bool)
    held[np.argsort(measured)[: fitted.num_held_out]] = True
    fig, (left, right) = figure(columns=2)
    ends = [measured.min(), measured.max()]
    left.plot(ends, ends, color="grey", linewidth=1)
    for mask, label in ((~held, "runs"), (held, "best runs, held out in validation")):
        if mask.any():
            left.scatter(measured[mask], predicted[mask], s=14, label=label)
            right.scatter(measured[mask], (predicted - measured)[mask], s=14, label=label)
    right.axhline(0, color="grey", linewidth=1)
    left.set(xlabel="measured loss (nats a token)", ylabel="loss by the law (nats a token)", title=fitted.law)
    right.set(xlabel="measured loss (nats a token)", ylabel="law - measured (nats a token)", title="residuals")
    for panel in (left, right):
        panel.grid(alpha=0.25)
        panel.legend(fontsize=7)
    with writable(out, "--plot a file that may be written"):
        fig.savefig(out)
    return out
