"""The logarithm of a law as a function of parameters that are easy to fit: what the fit needs to know of a law."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np

Columns = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Parameter:
    """One coefficient to fit, by the name that the law gives it; positive ones (`log`) as their logarithm.

    centre, spread: published value and how far from it (one standard deviation, in logarithms for `log`) the
    coefficient of another corpus may well be. starts: values of the grid of starts, the centre alone if empty.
    low, high: what the form can bear.
    """

    name: str
    centre: float
    spread: float
    starts: tuple[float, ...] = ()
    log: bool = False
    low: float = -math.inf
    high: float = math.inf

    def inner(self, value: float) -> float:
        """What is fitted, of a coefficient's value."""
        return math.log(value) if self.log else value


@dataclass(frozen=True)
class Form:
    """A law as the log of a sum of exponentials: log L = log sum_k exp(t_k).

    columns: the numbers of a run. log_terms(theta, columns): t [K, ..., R] of inner parameters theta [P] or [P, S, 1];
    jacobian(theta, columns): dt / dtheta [K, R, P] of theta [P]. huber_delta: of the log loss, the paper's.
    weight_by_loss: runs count as 1 / loss, as the joint law's authors have it. held_out: best runs kept for validation.
    shared: a column with one value in all runs that is a coefficient of the law too.
    """

    law: str
    columns: tuple[str, ...]
    parameters: tuple[Parameter, ...]
    log_terms: Callable[[np.ndarray, Columns], np.ndarray]
    jacobian: Callable[[np.ndarray, Columns], np.ndarray]
    huber_delta: float
    held_out: Callable[[int], int]
    weight_by_loss: bool = False
    shared: str | None = None

    @cached_property
    def centre(self) -> np.ndarray:
        """Published inner parameters [P]."""
        return np.array([each.inner(each.centre) for each in self.parameters])

    @cached_property
    def spread(self) -> np.ndarray:
        """Standard deviations [P] of the penalty."""
        return np.array([each.spread for each in self.parameters])

    @cached_property
    def bounds(self) -> tuple[np.ndarray, np.ndarray]:
        """Lowest and highest inner parameters [P]."""
        low, high = ([getattr(each, end) for each in self.parameters] for end in ("low", "high"))
        logs = [each.log for each in self.parameters]
        return (np.array([math.log(x) if log and x > 0 else -math.inf if log else x
                          for x, log in zip(low, logs, strict=True)]),
                np.array([math.log(x) if log else x for x, log in zip(high, logs, strict=True)]))

    def log_loss(self, theta: np.ndarray, columns: Columns) -> np.ndarray:
        """log L [..., R]."""
        return np.logaddexp.reduce(self.log_terms(theta, columns), axis=0)

    def log_loss_jacobian(self, theta: np.ndarray, columns: Columns) -> np.ndarray:
        """d log L / dtheta [R, P]: the Jacobians of the terms, weighted by each term's share of the loss."""
        terms_KR = self.log_terms(theta, columns)
        share_KR = np.exp(terms_KR - np.logaddexp.reduce(terms_KR, axis=0))
        return np.einsum("kr,krp->rp", share_KR, self.jacobian(theta, columns))

    def coefficients(self, theta: np.ndarray) -> dict[str, float]:
        """The law's coefficients by name, of inner parameters [P]."""
        return {each.name: float(np.exp(value) if each.log else value)
                for each, value in zip(self.parameters, theta, strict=True)}

    def theta(self, coefficients: Mapping[str, float]) -> np.ndarray:
        """Inner parameters [P] of the law's coefficients."""
        return np.array([each.inner(coefficients[each.name]) for each in self.parameters])
