"""Which experts the tokens went to: one picture a run, one panel a mixture-of-experts layer."""

from pathlib import Path

import numpy as np

from framework.report.curves import AXES, along
from framework.report.figure import figure
from framework.report.runs import Run

BALANCE = ("expert_load_max", "expert_load_min", "expert_entropy")
"""Metrics of load that do not name experts, so that seeds can be averaged: which expert is busy differs by seed."""


def expert_load(run: Run) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Layer name -> (steps [rows], share of the layer's tokens that each expert got [rows, experts])."""
    rows = [row for row in run.rows if row["kind"] == "experts"]
    layers = list(rows[0]["load"]) if rows else []
    steps = np.array([row["step"] for row in rows], dtype=float)
    return {layer: (steps, np.array([row["load"][layer] for row in rows])) for layer in layers}


def draw_expert_load(run: Run, out: Path, axis: str = "steps") -> Path | None:
    """Heat maps of experts along an axis, 1 meaning an equal share. None where the run has no experts."""
    loads = expert_load(run)
    if not loads:
        return None
    fig, panels = figure(columns=min(4, len(loads)), rows=-(-len(loads) // 4))
    for panel, (layer, (steps, share_RE)) in zip(panels, loads.items(), strict=False):
        relative_RE = share_RE * share_RE.shape[1]
        image = panel.pcolormesh(along(run, steps, axis), np.arange(share_RE.shape[1]), relative_RE.T, cmap="RdBu_r",
                                 vmin=0, vmax=2, shading="nearest")
        panel.set(title=layer, xlabel=AXES[axis], ylabel="expert")
        fig.colorbar(image, ax=panel, label="load / equal share")
    for panel in panels[len(loads):]:
        panel.remove()
    fig.savefig(out)
    return out
