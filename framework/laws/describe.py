"""Laws, answers, comparisons and fits as text."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from framework.laws.ask import Answer
from framework.laws.compare import Comparison
from framework.laws.fit.fit_runs import FittedRuns
from framework.laws.registry import find_law


def describe(name: str) -> str:
    """Everything that is known of a law."""
    law = find_law(name)
    lines = [f"{law.name}: {law.title}", f"source   {law.source}", f"law      {law.formula}"]
    lines += [f"         {line}" for line in law.definitions]
    for title, variables in (("predict", law.variables), ("optimum", law.budget)):
        for variable in variables:
            default = "" if variable.default is None else f" [{variable.default:g}]"
            lines.append(f"{title:<8} {variable.name:<22} {variable.meaning}{default}")
    ranges = {name: law.domain(point) for name, point in _points(law.sets)}
    for name, coefficients in law.sets.items():
        lines += _indented(f"set {name}", _flat(coefficients))
        if name in ranges:
            lines.append("  fitted on " + ", ".join(f"{key} {low:.3g} to {high:.3g}"
                                                    for key, (low, high) in ranges[name].items()))
    return "\n".join([*lines, *law.caution])


def answer_table(answer: Answer) -> str:
    """One number a line."""
    lines = [f"{name:<20} {_number(name, value)}" for name, value in answer.values.items()]
    if answer.interval is not None:
        lines.insert(1, f"{'  90 % interval':<20} {answer.interval[0]:.4f} to {answer.interval[1]:.4f}")
    return "\n".join(lines)


def comparison_table(comparison: Comparison) -> str:
    """One line for each point and curve; warnings once, at the end."""
    width = max(len(curve.label) for curve in comparison.curves) + 1
    saves = bool(comparison.savings)
    best = [curve.takes_optimum(comparison.over) for curve in comparison.curves]
    more = ("num_params_active", "tokens", "granularity", "num_experts") if any(best) else ()
    head = f"{comparison.over:<12} {'curve':<{width}} {'loss':>8}" + "".join(f" {name:>17}" for name in more)
    lines = [head + (f" {'FLOPs saved':>12}" if saves else "")]
    for index, (point, answers) in enumerate(zip(comparison.points, comparison.answers, strict=True)):
        for place, (curve, answer) in enumerate(zip(comparison.curves, answers, strict=True)):
            line = f"{point:<12.4g} {curve.label:<{width}} {answer.values['loss']:>8.4f}"
            line += "".join(f" {_cell(answer, name):>17}" for name in more)
            if saves:
                saving = comparison.savings[index][place]
                line += f" {'never' if saving is None else f'{saving:.3g}x':>12}"
            lines.append(line)
    found = [answer for row in comparison.answers for answer in row]
    if extrapolated := sum(1 for answer in found if len(answer.warnings) > len(answer.law.caution)):
        lines.append(f"{extrapolated} of {len(found)} points lie outside what their laws were fitted on "
                     "(--json says how)")
    lines += sorted({line for answer in found for line in answer.law.caution})
    return "\n".join(lines)


def fit_table(fitted: FittedRuns, out: Path) -> str:
    """Coefficients with intervals, and the quality of the fit."""
    content = fitted.content
    lines = [f"{'coefficient':<15} {'value':>11}  90 % interval"]
    for name, value in content["coefficients"].items():
        ends = content["intervals"].get(name)
        lines.append(f"{name:<15} {value:>11.5g}" + (f"  {ends[0]:.5g} to {ends[1]:.5g}" if ends else ""))
    quality = content["fit"]
    lines.append(f"{quality['num_runs']} runs, RMSE {quality['rmse']:.4f} nats")
    if quality["num_held_out"]:
        lines.append(f"fitted without the {quality['num_held_out']} best runs: RMSE on them "
                     f"{quality['held_out_rmse']:.4f} nats")
    return "\n".join([*lines, f"coefficients: {out}"])


def _points(sets: dict[str, Any]) -> Iterable[tuple[str, dict[str, float]]]:
    for name, coefficients in sets.items():
        rate = getattr(coefficients, "expansion_rate", None)
        yield name, {} if rate is None else {"expansion_rate": rate}


def _flat(coefficients: Any) -> list[str]:
    found = []
    for name, value in dataclasses.asdict(coefficients).items():
        found.append(f"{name} {value if isinstance(value, dict) else format(value, '.10g')}")
    return found


def _indented(title: str, parts: list[str]) -> list[str]:
    if any("{" in part for part in parts):
        return [title, *(f"  {part}" for part in parts)]
    return [title, "  " + ", ".join(parts)]


def _cell(answer: Answer, name: str) -> str:
    return _number(name, answer.values[name]) if name in answer.values else "-"


def _number(name: str, value: float) -> str:
    if name.endswith("loss"):
        return f"{value:.4f}"
    return f"{value:,.0f}" if value == int(value) and abs(value) < 1e6 else f"{value:.4g}"
