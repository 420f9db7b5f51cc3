"""Laws side by side over a range of one number: their losses, and what one saves against another."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from framework.errors import UserError
from framework.laws.ask import Answer, optimum_with, predict_with
from framework.laws.coefficients import Fitted, choose, read_coefficients
from framework.laws.law import Law
from framework.laws.registry import find_law
from framework.laws.search import crossing
from framework.laws.values import Values, parse

FEWEST, MOST = 2, 1000
REACH = 1e12
"""Factor in FLOPs within which a baseline is asked for the same loss."""


@dataclass(frozen=True)
class Curve:
    """A law with coefficients and fixed numbers, and the words that named it."""

    label: str
    law: Law
    fixed: Values
    coefficients: Any = None
    fitted: Fitted | None = None

    def takes_optimum(self, over: str) -> bool:
        """Whether its best model is meant at each point of the range, and not a prediction."""
        return self.law.optimum is not None and over in {variable.name for variable in self.law.budget}

    def at(self, over: str, value: float) -> Answer:
        """What it says at one point of the range."""
        ask = optimum_with if self.takes_optimum(over) else predict_with
        return ask(self.law, self.fixed | {over: value}, self.coefficients, self.fitted)

    def knows(self, over: str) -> set[str]:
        """Names of the numbers that it takes."""
        return {each.name for each in (self.law.budget if self.takes_optimum(over) else self.law.variables)}


@dataclass(frozen=True)
class Comparison:
    """Curves over a range. answers: [point][curve]. savings: [point][curve], FLOPs of the first curve's best model of
    the same loss over those spent; empty where the range is not of FLOPs, None where the first cannot reach the loss.
    """

    over: str
    points: list[float]
    curves: list[Curve]
    answers: list[list[Answer]]
    savings: list[list[float | None]]

    def plain(self) -> dict[str, Any]:
        """For JSON."""
        rows = []
        for index, (point, answers) in enumerate(zip(self.points, self.answers, strict=True)):
            found = [answer.plain() for answer in answers]
            for place, saving in enumerate(self.savings[index] if self.savings else []):
                found[place]["flops_saving"] = saving
            rows.append({self.over: point, "curves": found})
        return {"over": self.over, "curves": [curve.label for curve in self.curves], "rows": rows}


def compare(words: Sequence[str], coefficients: str | None = None, per_decade: int = 1) -> Comparison:
    """Read the words and ask every curve at every point.

    words: curves `LAW[@SET or FILE][,name=value...]`; one range `name=low..high` (per_decade points to a factor of
    ten) or `name=a,b,c`; `name=value` for the curves that know the name. coefficients: a file for the curves of its
    law that name none. The best model is meant where the range is one of an optimum (flops), a prediction elsewhere.
    """
    named = [word for word in words if "=" not in word.split(",")[0]]
    ranges = [word for word in words if word not in named and (".." in word or "," in word)]
    shared = parse(word for word in words if word not in named and word not in ranges)
    if not named or len(ranges) != 1:
        raise UserError(f"{len(named)} curves and {len(ranges)} ranges given; allowed: one curve or more, as joint or "
                        "fine_grained,granularity=1, and one range, as flops=1e18..1e22 or tokens=1e9,2e9")
    over, points = _range(ranges[0], per_decade)
    curves = [_curve(word, shared, over, coefficients) for word in named]
    for name in shared:
        if not any(name in curve.knows(over) for curve in curves):
            known = ", ".join(sorted(curves[0].knows(over)))
            raise UserError(f"{name} is known to none of the curves; allowed: {known}")
    answers = [[curve.at(over, point) for curve in curves] for point in points]
    for curve, answer in zip(curves, answers[0], strict=True):
        if "loss" not in answer.values:
            raise UserError(f"{curve.label}: predicts no loss; allowed: laws of losses")
    savings = []
    if over == "flops" and curves[0].takes_optimum(over):
        savings = [[_saving(curves[0], answer, point) for answer in row]
                   for point, row in zip(points, answers, strict=True)]
    return Comparison(over, points, curves, answers, savings)


def _saving(baseline: Curve, answer: Answer, flops: float) -> float | None:
    def excess(log: float) -> float:
        return baseline.at("flops", math.exp(log)).values["loss"] - answer.values["loss"]

    log = crossing(excess, math.log(flops / 1e3), math.log(flops * REACH))
    return None if log is None else math.exp(log) / flops


def _range(word: str, per_decade: int) -> tuple[str, list[float]]:
    name, _, text = word.partition("=")
    allowed = f"{name}=low..high or {name}=a,b,c, ascending positive numbers, {FEWEST} to {MOST} of them"
    try:
        points = [float(part) for part in text.replace("..", ",").split(",")]
    except ValueError:
        raise UserError(f"{word!r}; allowed: {allowed}") from None
    if not all(0 < low < high < math.inf for low, high in zip(points, points[1:], strict=False)):
        raise UserError(f"{word!r}; allowed: {allowed}")
    if ".." in text and len(points) == 2:
        low, high = points
        steps = max(1, round(per_decade * math.log10(high / low)))
        points = [low * (high / low) ** (step / steps) for step in range(steps + 1)]
    if not FEWEST <= len(points) <= MOST:
        raise UserError(f"{word!r}; allowed: {allowed}")
    return name, points


def _curve(word: str, shared: Mapping[str, float], over: str, coefficients: str | None) -> Curve:
    name, *numbers = word.split(",")
    name, _, own = name.partition("@")
    law = find_law(name)
    if not own and coefficients is not None and read_coefficients(Path(coefficients)).law.name == law.name:
        own = coefficients
    curve = Curve(word, law, {}, *choose(law, own or None))
    fixed = {key: value for key, value in shared.items() if key in curve.knows(over)} | parse(numbers)
    return Curve(word, law, fixed, curve.coefficients, curve.fitted)
