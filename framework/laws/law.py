"""What a law is: its numbers, its published coefficients, where it was fitted, and the questions it answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from framework.laws.values import Range, Values, Variable

if TYPE_CHECKING:
    from framework.laws.fit.form import Form


@dataclass(frozen=True)
class Law:
    """One published law.

    formula, source: as the paper has them. definitions: what N, D and the like count.
    variables: the numbers of a prediction. predict(values, coefficients): what the law says there, `loss` in nats a
    token first; the law takes the published coefficients itself where none are given.
    budget: the numbers of an optimum. optimum(values, coefficients): the point of least loss, None where the law has
    none. sets: published coefficients by name. domain(values): the ranges of the runs that the law was fitted on.
    form: how coefficients are fitted, None where they are not. caution: what every answer has to say.
    """

    name: str
    title: str
    source: str
    formula: str
    definitions: tuple[str, ...]
    variables: tuple[Variable, ...]
    sets: Mapping[str, Any]
    predict: Callable[[Values, Any], Values]
    domain: Callable[[Values], Mapping[str, Range]]
    budget: tuple[Variable, ...] = ()
    optimum: Callable[[Values, Any], Values] | None = None
    form: Form | None = None
    caution: tuple[str, ...] = field(default=())
