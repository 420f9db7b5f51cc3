"""One descent of a law's coefficients to runs: Huber loss of the log losses, and a weak pull to published values."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from framework.laws.fit.form import Columns, Form

TOLERANCE = 1e-9
MARGIN = 1e-6


@dataclass(frozen=True)
class Problem:
    """What is fitted: runs by column [R] and the logarithms of their losses [R].

    noise: standard deviation of a log loss. It sets how the penalty weighs against the runs: that of a Gaussian prior
    around `centre` [P] with the form's spreads. 0: no penalty.
    """

    form: Form
    columns: Columns
    log_losses: np.ndarray
    noise: float
    centre: np.ndarray

    def take(self, index: np.ndarray, centre: np.ndarray) -> Problem:
        """The runs of an index, repeated as it says, and another centre of the penalty."""
        columns = {name: values[index] for name, values in self.columns.items()}
        return Problem(self.form, columns, self.log_losses[index], self.noise, centre)

    def weights(self) -> np.ndarray:
        """Weight of each run, of mean 1."""
        if not self.form.weight_by_loss:
            return np.ones_like(self.log_losses)
        inverse = np.exp(-self.log_losses)
        return inverse / inverse.mean()


def huber(residuals: np.ndarray, delta: float) -> np.ndarray:
    """r^2 / 2 up to delta, delta (|r| - delta / 2) beyond."""
    size = np.abs(residuals)
    return np.where(size <= delta, size**2 / 2, delta * (size - delta / 2))


def descend(problem: Problem, start: np.ndarray, tolerance: float = TOLERANCE) -> tuple[np.ndarray, float]:
    """Inner parameters [P] at a minimum that the start leads to, and the objective there.

    objective = sum_r weight Huber(log L(theta) - log L_r) + noise^2 / 2 sum_p ((theta - centre) / spread)^2, by a
    trust-region least-squares method with the exact Jacobian.
    """
    from scipy.optimize import least_squares

    form, delta = problem.form, problem.form.huber_delta
    root_weight_R = np.sqrt(problem.weights()) / delta
    pull_P = problem.noise / form.spread / delta
    num_runs = len(problem.log_losses)

    def residuals(theta: np.ndarray) -> np.ndarray:
        of_runs = (form.log_loss(theta, problem.columns) - problem.log_losses) * root_weight_R
        return np.concatenate([of_runs, (theta - problem.centre) * pull_P])

    def jacobian(theta: np.ndarray) -> np.ndarray:
        of_runs = form.log_loss_jacobian(theta, problem.columns) * root_weight_R[:, None]
        return np.concatenate([of_runs, np.diag(pull_P)])

    def rho(squares: np.ndarray) -> np.ndarray:
        """SciPy's loss of squared residuals, and two derivatives: Huber's for runs, the square itself for the pull."""
        root = np.sqrt(np.maximum(squares, 1))
        outside = (squares > 1) & (np.arange(len(squares)) < num_runs)
        return np.stack([np.where(outside, 2 * root - 1, squares), np.where(outside, 1 / root, 1.0),
                         np.where(outside, -0.5 / root**3, 0.0)])

    low, high = form.bounds
    start = np.clip(start, low + MARGIN, high - MARGIN)
    found = least_squares(residuals, start, jac=jacobian, bounds=(low, high), loss=rho, x_scale=form.spread,
                          ftol=tolerance, xtol=tolerance, gtol=1e-13, max_nfev=500)
    return found.x, float(found.cost) * delta**2
