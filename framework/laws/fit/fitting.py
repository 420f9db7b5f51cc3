"""Coefficients of a law from the losses of runs: a grid of starts, descents from the best of them, hold-out."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from framework.laws.fit.descent import Problem, descend, huber
from framework.laws.fit.form import Columns, Form

DESCENTS = 8
CHUNK = 2048
FIRST_NOISE = 1e-3
"""With which the noise itself is found: a penalty so weak that it hides none of the runs' own scatter."""

LEAST_NOISE, MOST_NOISE = 1e-4, 0.03
"""Losses are no surer than the one, and a weaker penalty would leave what the runs do not tell to rounding. Scatter
beyond the other is a law that does not fit, which no stronger pull to published values mends."""

Progress = Callable[[], None]


@dataclass(frozen=True)
class Fit:
    """Inner parameters [P] fitted to all runs, and how well they fit.

    noise: standard deviation of a log loss around the law, by the median of absolute residuals. rmse: of the loss, in
    nats. held_out_rmse, held_out: of the best runs, under a fit that did not see them; None and 0 with too few runs.
    """

    problem: Problem
    theta: np.ndarray
    noise: float
    rmse: float
    held_out: int
    held_out_rmse: float | None


def num_descents() -> int:
    """How often `fit_law` calls `progress`."""
    return 2 * DESCENTS


def fit_law(form: Form, columns: Columns, losses: np.ndarray, progress: Progress = lambda: None) -> Fit:
    """Fit the law to runs by column [R] and their losses [R] in nats a token.

    The grid of starts is screened by the objective, and the best lead down; the lowest minimum is taken. That is done
    for the runs without the best ones, for validation, and for all runs, for the coefficients.
    """
    held_out = max(0, min(form.held_out(len(losses)), len(losses) - len(form.parameters) - 1))
    order = np.argsort(losses)
    validation = None
    if held_out:
        kept = order[held_out:]
        theta, _ = _fit(form, {name: values[kept] for name, values in columns.items()}, losses[kept], progress)
        best = order[:held_out]
        predicted = np.exp(form.log_loss(theta, {name: values[best] for name, values in columns.items()}))
        validation = float(np.sqrt(np.mean((predicted - losses[best]) ** 2)))
    theta, problem = _fit(form, columns, losses, progress)
    rmse = float(np.sqrt(np.mean((np.exp(form.log_loss(theta, columns)) - losses) ** 2)))
    return Fit(problem, theta, noise_of(problem, theta), rmse, held_out, validation)


def noise_of(problem: Problem, theta: np.ndarray) -> float:
    """Standard deviation of a log loss: 1.4826 times the median absolute residual, for the coefficients' freedom."""
    residuals = np.abs(problem.form.log_loss(theta, problem.columns) - problem.log_losses)
    runs, freedom = len(residuals), max(1, len(residuals) - len(theta))
    return 1.4826 * float(np.median(residuals)) * (runs / freedom) ** 0.5


def starts(problem: Problem, count: int) -> np.ndarray:
    """The best points [count, P] of the form's grid, and the published coefficients."""
    form = problem.form
    axes = [[each.inner(value) for value in each.starts] or [each.inner(each.centre)] for each in form.parameters]
    grid_SP = np.array(list(itertools.product(*axes)))
    scores = np.concatenate([_scores(problem, chunk) for chunk in np.array_split(grid_SP, -(-len(grid_SP) // CHUNK))])
    return np.vstack([form.centre, grid_SP[np.argsort(scores)[: count - 1]]])


def _scores(problem: Problem, theta_SP: np.ndarray) -> np.ndarray:
    log_loss_SR = problem.form.log_loss(theta_SP.T[:, :, None], problem.columns)
    return huber(log_loss_SR - problem.log_losses, problem.form.huber_delta).sum(1)


def _fit(form: Form, columns: Columns, losses: np.ndarray, progress: Progress) -> tuple[np.ndarray, Problem]:
    problem = Problem(form, columns, np.log(losses), FIRST_NOISE, form.centre)
    found = []
    for start in starts(problem, DESCENTS):
        found.append(descend(problem, start, 1e-7))
        progress()
    theta = min(found, key=lambda pair: pair[1])[0]
    noise = min(max(noise_of(problem, theta), LEAST_NOISE), MOST_NOISE)
    problem = Problem(form, columns, problem.log_losses, noise, form.centre)
    return descend(problem, theta)[0], problem
