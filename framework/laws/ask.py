"""The two questions to a law, with its coefficients chosen and everything told that an answer has to say."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from framework.errors import UserError
from framework.laws.coefficients import Fitted, choose
from framework.laws.law import Law
from framework.laws.registry import find_law
from framework.laws.values import Values, Variable, extrapolations, read


@dataclass(frozen=True)
class Answer:
    """What a law says: numbers by name, `loss` in nats a token among them; the 90 % interval of the loss where the
    coefficients were fitted; and warnings."""

    law: Law
    values: Values
    interval: list[float] | None
    warnings: tuple[str, ...]

    def plain(self) -> dict[str, Any]:
        """For JSON. Counts of things are whole numbers where they are whole."""
        values = {name: int(value) if value == int(value) and name != "loss" else value
                  for name, value in self.values.items()}
        found = {"law": self.law.name, **values}
        if self.interval is not None:
            found["loss_interval_90"] = self.interval
        return found | {"warnings": list(self.warnings)}


def predict(law_name: str, given: Mapping[str, float], coefficients: str | None = None) -> Answer:
    """What a law says at one point. coefficients: a published set's name or a fitted file; None: as published.

    Raises UserError for numbers that the law does not know, lacks, or cannot be.
    """
    return predict_with(find_law(law_name), given, *choose(find_law(law_name), coefficients))


def predict_with(law: Law, given: Mapping[str, float], coefficients: Any, fitted: Fitted | None) -> Answer:
    """`predict` with coefficients at hand."""
    return _answer(law, law.predict, law.variables, given, coefficients, fitted)


def optimum(law_name: str, given: Mapping[str, float], coefficients: str | None = None) -> Answer:
    """The point of least loss under the numbers given (FLOPs and others).

    Raises UserError as `predict` does, and for a law without one.
    """
    return optimum_with(find_law(law_name), given, *choose(find_law(law_name), coefficients))


def optimum_with(law: Law, given: Mapping[str, float], coefficients: Any, fitted: Fitted | None) -> Answer:
    """`optimum` with coefficients at hand."""
    if law.optimum is None:
        from framework.laws.registry import LAWS

        others = ", ".join(name for name, other in LAWS.items() if other.optimum is not None)
        raise UserError(f"{law.name} gives no optimum; allowed: {others}")
    return _answer(law, law.optimum, law.budget, given, coefficients, fitted)


def _answer(
    law: Law, question: Any, variables: tuple[Variable, ...], given: Mapping[str, float], coefficients: Any,
    fitted: Fitted | None,
) -> Answer:
    values = read(law.name, variables, given)
    try:
        found = question(values, coefficients)
    except ArithmeticError:
        raise UserError(f"{law.name}: these coefficients give no number here; allowed: positive ones as published "
                        "or fitted") from None
    domain = law.domain(values | found) if fitted is None else fitted.ranges
    warnings = (*law.caution, *extrapolations(law.name, values | found, domain))
    return Answer(law, found, None if fitted is None else fitted.interval(found), warnings)
