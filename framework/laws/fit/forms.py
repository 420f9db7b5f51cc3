"""Forms of the laws that can be fitted, with the Huber deltas and grids of starts of their papers.

The grid of Chinchilla's law is as its paper is remembered to have it, that of the joint law is its paper's; the
fine-grained law's authors started from one point, and the grid of the two laws of that paper is chosen here.
K terms, R runs, P parameters.
"""

from __future__ import annotations

import numpy as np

from framework.laws.fit.form import Columns, Form, Parameter

AMPLITUDE, EXPONENT, FLOOR = 0.75, 0.05, 0.3
"""Spreads of the logarithm of a factor, of an exponent of N or D, and of the logarithm of the irreducible loss: about
twice what the published fits of one form differ by (the fine-grained law at E = 16 and 64, the joint one over E)."""


def _power_sum(size: str):
    """log_terms and jacobian of ln a - alpha ln N, ln b - beta ln D, ln c, in the order a, alpha, b, beta, c."""

    def log_terms(theta: np.ndarray, columns: Columns) -> np.ndarray:
        log_a, alpha, log_b, beta, log_c = theta
        log_N, log_D = np.log(columns[size]), np.log(columns["tokens"])
        return np.stack(np.broadcast_arrays(log_a - alpha * log_N, log_b - beta * log_D, log_c + 0 * log_N))

    def jacobian(theta: np.ndarray, columns: Columns) -> np.ndarray:
        found_KRP = np.zeros((3, len(columns[size]), 5))
        found_KRP[0, :, 0], found_KRP[0, :, 1] = 1, -np.log(columns[size])
        found_KRP[1, :, 2], found_KRP[1, :, 3] = 1, -np.log(columns["tokens"])
        found_KRP[2, :, 4] = 1
        return found_KRP

    return log_terms, jacobian


def _fine_grained_terms(theta: np.ndarray, columns: Columns) -> np.ndarray:
    log_a, alpha, log_b, beta, log_g, gamma, log_c = theta
    log_N, log_D, log_G = (np.log(columns[name]) for name in ("num_params_total", "tokens", "granularity"))
    terms = (log_g - gamma * log_G - alpha * log_N, log_a - alpha * log_N, log_b - beta * log_D, log_c + 0 * log_N)
    return np.stack(np.broadcast_arrays(*terms))


def _fine_grained_jacobian(theta: np.ndarray, columns: Columns) -> np.ndarray:
    log_N, log_D, log_G = (np.log(columns[name]) for name in ("num_params_total", "tokens", "granularity"))
    found_KRP = np.zeros((4, len(log_N), 7))
    found_KRP[0, :, 4], found_KRP[0, :, 5], found_KRP[0, :, 1] = 1, -log_G, -log_N
    found_KRP[1, :, 0], found_KRP[1, :, 1] = 1, -log_N
    found_KRP[2, :, 2], found_KRP[2, :, 3] = 1, -log_D
    found_KRP[3, :, 6] = 1
    return found_KRP


def _log_experts(log_start, log_max, num_experts):
    """ln E^ (arXiv 2502.05172) and its derivatives by ln E_start and ln E_max."""
    offset = 1 / (np.exp(-log_start) - np.exp(-log_max))
    saturating = num_experts - 1 + offset
    inverse = 1 / saturating + np.exp(-log_max)
    by_start = offset**2 * np.exp(-log_start) / saturating**2 / inverse
    by_max = (np.exp(-log_max) - offset**2 * np.exp(-log_max) / saturating**2) / inverse
    return -np.log(inverse), by_start, by_max


def _joint_terms(theta: np.ndarray, columns: Columns) -> np.ndarray:
    log_a, alpha, delta, gamma, log_b, beta, omega, zeta, log_start, log_max, log_c = theta
    log_N, log_D = np.log(columns["num_params_active"]), np.log(columns["tokens"])
    log_E, _, _ = _log_experts(log_start, log_max, columns["num_experts"])
    of_size = log_a + delta * log_E + (alpha + gamma * log_E) * log_N
    of_data = log_b + omega * log_E + (beta + zeta * log_E) * log_D
    return np.stack(np.broadcast_arrays(of_size, of_data, log_c + 0 * log_N))


def _joint_jacobian(theta: np.ndarray, columns: Columns) -> np.ndarray:
    _, _, delta, gamma, _, _, omega, zeta, log_start, log_max, _ = theta
    log_N, log_D = np.log(columns["num_params_active"]), np.log(columns["tokens"])
    log_E, by_start, by_max = _log_experts(log_start, log_max, columns["num_experts"])
    found_KRP = np.zeros((3, len(log_N), 11))
    for term, log_X, by_log_E in ((0, log_N, delta + gamma * log_N), (1, log_D, omega + zeta * log_D)):
        first = 4 * term
        for place, column in enumerate((1, log_X, log_E, log_E * log_X)):
            found_KRP[term, :, first + place] = column
        found_KRP[term, :, 8], found_KRP[term, :, 9] = by_log_E * by_start, by_log_E * by_max
    found_KRP[2, :, 10] = 1
    return found_KRP


def _best_fifth(num_runs: int) -> int:
    return num_runs // 5


def _best_thirty(num_runs: int) -> int:
    return min(30, num_runs // 5)


_chinchilla_terms, _chinchilla_jacobian = _power_sum("num_params")
_dense_terms, _dense_jacobian = _power_sum("num_params_total")

CHINCHILLA = Form(
    law="chinchilla",
    columns=("num_params", "tokens"),
    parameters=(
        Parameter("a", 406.4, 2 * AMPLITUDE, tuple(np.exp(range(0, 26, 5))), log=True),
        Parameter("alpha", 0.34, 2 * EXPONENT, (0, 0.5, 1, 1.5, 2)),
        Parameter("b", 410.7, 2 * AMPLITUDE, tuple(np.exp(range(0, 26, 5))), log=True),
        Parameter("beta", 0.28, 2 * EXPONENT, (0, 0.5, 1, 1.5, 2)),
        Parameter("e", 1.69, FLOOR, tuple(np.exp([-1, -0.5, 0, 0.5, 1])), log=True),
    ),
    log_terms=_chinchilla_terms,
    jacobian=_chinchilla_jacobian,
    huber_delta=1e-3,
    held_out=_best_fifth,
)

DENSE = Form(
    law="fine_grained_dense",
    columns=("num_params_total", "tokens"),
    parameters=(
        Parameter("a", 16.3, AMPLITUDE, (5, 30, 150), log=True),
        Parameter("alpha", 0.126, EXPONENT, (0.05, 0.15, 0.3)),
        Parameter("b", 26.7, AMPLITUDE, (5, 30, 150), log=True),
        Parameter("beta", 0.127, EXPONENT, (0.05, 0.15, 0.3)),
        Parameter("c", 0.472, FLOOR, (0.3, 0.5, 1, 2), log=True),
    ),
    log_terms=_dense_terms,
    jacobian=_dense_jacobian,
    huber_delta=0.1,
    held_out=_best_fifth,
)

FINE_GRAINED = Form(
    law="fine_grained",
    columns=("num_params_total", "tokens", "granularity"),
    parameters=(
        Parameter("a", 18.1, AMPLITUDE, (5, 30, 150), log=True),
        Parameter("alpha", 0.115, EXPONENT, (0.05, 0.15, 0.3)),
        Parameter("b", 30.8, AMPLITUDE, (5, 30, 150), log=True),
        Parameter("beta", 0.147, EXPONENT, (0.05, 0.15, 0.3)),
        Parameter("g", 2.1, AMPLITUDE, (1, 5), log=True),
        Parameter("gamma", 0.58, 0.3, (0.4, 1.0)),
        Parameter("c", 0.472, FLOOR, (0.3, 0.5, 1, 2), log=True),
    ),
    log_terms=_fine_grained_terms,
    jacobian=_fine_grained_jacobian,
    huber_delta=0.1,
    held_out=_best_fifth,
    shared="expansion_rate",
)

JOINT = Form(
    law="joint",
    columns=("num_params_active", "tokens", "num_experts"),
    parameters=(
        Parameter("a", 35.91, AMPLITUDE, (30, 100, 300), log=True),
        Parameter("alpha", -0.1889, EXPONENT, (-0.05, -0.25, -0.5)),
        Parameter("delta", -0.2285, 0.3, (-0.5, 0, 0.5)),
        Parameter("gamma", 0.0098, 0.02, (-0.5, 0, 0.5)),
        Parameter("b", 35.98, AMPLITUDE, (30, 100, 300), log=True),
        Parameter("beta", -0.1775, EXPONENT, (-0.05, -0.25, -0.5)),
        Parameter("omega", 0.5529, 0.3, (-0.5, 0, 0.5)),
        Parameter("zeta", -0.0259, 0.02, (-0.5, 0, 0.5)),
        Parameter("e_start", 2.0732, 0.3, log=True, low=1, high=10),
        Parameter("e_max", 290.4521, 0.7, log=True, low=20, high=1e5),
        Parameter("c", 1.3637, FLOOR, (0.5, 1, 2), log=True),
    ),
    log_terms=_joint_terms,
    jacobian=_joint_jacobian,
    huber_delta=0.01,
    held_out=_best_thirty,
    weight_by_loss=True,
)
