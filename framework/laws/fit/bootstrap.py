"""How sure a fit is: the same fit to runs drawn again, and the intervals that its answers span."""

from __future__ import annotations

import numpy as np

from framework.laws.fit.descent import descend
from framework.laws.fit.fitting import Fit, Progress

REPLICATES = 200
COVERAGE = 0.9


def bootstrap(fit: Fit, replicates: int = REPLICATES, seed: int = 0, progress: Progress = lambda: None) -> np.ndarray:
    """Inner parameters [replicates, P] of fits to as many runs, drawn with replacement.

    Each draws the centre of the penalty too, from the spread around the published values that the penalty stands for.
    With one centre for all, what the runs leave open would look as certain as the penalty is sure.
    """
    form, generator = fit.problem.form, np.random.default_rng(seed)
    found = []
    for _ in range(replicates):
        runs = generator.integers(0, len(fit.problem.log_losses), len(fit.problem.log_losses))
        centre = form.centre + form.spread * generator.standard_normal(len(form.centre))
        found.append(descend(fit.problem.take(runs, np.clip(centre, *form.bounds)), fit.theta, 1e-6)[0])
        progress()
    return np.array(found)


def interval(values: np.ndarray, num_runs: int, num_parameters: int, coverage: float = COVERAGE) -> list[float]:
    """Lower and upper end of the interval that the replicates' values [B] span.

    Percentiles, moved outward for few runs: those of a normal distribution at sqrt(n / (n - p)) times Student's
    quantile, as resampled runs vary by (n - p) / n less than new ones (expanded percentile interval).
    """
    from scipy.stats import norm, t

    freedom = max(1, num_runs - num_parameters)
    quantile = (num_runs / freedom) ** 0.5 * t.ppf((1 + coverage) / 2, freedom)
    low = float(norm.cdf(-quantile))
    return [float(value) for value in np.quantile(values, [low, 1 - low])]
