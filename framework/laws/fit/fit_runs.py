"""The whole of `upmix laws fit`: runs in, coefficients with intervals and their quality out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from framework.laws.fit.bootstrap import REPLICATES, bootstrap, interval
from framework.laws.fit.fitting import Progress, fit_law, num_descents
from framework.laws.fit.form import Form
from framework.laws.fit.observations import Observations, ranges

FORMAT = 1
"""Of the file of coefficients; raised when a change would misread old ones."""


@dataclass(frozen=True)
class FittedRuns:
    """What the file of coefficients holds (`content`), with measured and predicted losses [R] beside it."""

    law: str
    content: dict[str, Any]
    measured: np.ndarray
    predicted: np.ndarray
    num_held_out: int


def num_steps(replicates: int = REPLICATES) -> int:
    """How often `fit_runs` calls `progress`."""
    return num_descents() + replicates


def fit_runs(
    form: Form, runs: Observations, replicates: int = REPLICATES, seed: int = 0, progress: Progress = lambda: None
) -> FittedRuns:
    """Fit a law, and fit it again to `replicates` bootstrap draws for 90 % intervals."""
    fit = fit_law(form, runs.columns, runs.losses, progress)
    samples = bootstrap(fit, replicates, seed, progress)
    ends = [interval(column, len(runs.losses), len(form.parameters)) for column in samples.T]
    low, high = (form.coefficients(np.array(end)) for end in zip(*ends, strict=True))
    content = {
        "format": FORMAT,
        "law": form.law,
        "coefficients": form.coefficients(fit.theta) | runs.shared,
        "intervals": {name: [low[name], high[name]] for name in low},
        "fit": {
            "num_runs": len(runs.losses),
            "rmse": fit.rmse,
            "num_held_out": fit.held_out,
            "held_out_rmse": fit.held_out_rmse,
            "log_loss_noise": fit.noise,
            "huber_delta": form.huber_delta,
            "replicates": replicates,
            "seed": seed,
        },
        "ranges": ranges(runs.columns),
        "runs": list(runs.names),
        "samples": samples,
    }
    predicted = np.exp(form.log_loss(fit.theta, runs.columns))
    return FittedRuns(form.law, content, runs.losses, predicted, fit.held_out)
