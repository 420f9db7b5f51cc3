"""Fitted coefficients and their file: JSON, with what they were fitted on and the replicates of the bootstrap."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from framework.errors import UserError
from framework.files import write_atomically
from framework.laws.fit.bootstrap import interval
from framework.laws.fit.fit_runs import FORMAT
from framework.laws.law import Law
from framework.laws.registry import find_law
from framework.laws.values import Values

FIELDS = ("format", "law", "coefficients", "intervals", "fit", "ranges", "runs", "samples")


@dataclass(frozen=True)
class Fitted:
    """Coefficients of a law from a file.

    coefficients: of the law's own type. ranges: least and largest value of each column of the runs. samples:
    [replicates, P] inner parameters of the law's form. num_runs: how many were fitted.
    """

    law: Law
    coefficients: Any
    ranges: Mapping[str, tuple[float, float]]
    samples: np.ndarray
    num_runs: int

    def interval(self, point: Values) -> list[float]:
        """Ends of the 90 % interval of the loss at a point that has the form's columns."""
        form = self.law.form
        columns = {name: np.array([point[name]]) for name in form.columns}
        losses = np.exp(form.log_loss(self.samples.T[:, :, None], columns))[:, 0]
        return interval(losses, self.num_runs, len(form.parameters))


def coefficients_type(law: Law) -> type:
    """The dataclass of a law's coefficients."""
    return type(next(iter(law.sets.values())))


def write_coefficients(path: Path, content: Mapping[str, Any]) -> None:
    """Write a file of FIELDS, one replicate a line."""
    head = json.dumps({name: content[name] for name in FIELDS[:-1]}, indent=1)
    rows = ",\n  ".join(json.dumps([float(f"{value:.9g}") for value in row]) for row in content["samples"])
    write_atomically(path, f'{head[:-2]},\n "samples": [\n  {rows}\n ]\n}}\n')


def read_coefficients(path: Path) -> Fitted:
    """Read a file that `write_coefficients` made. Raises UserError for any other."""
    allowed = "a file that `upmix laws fit` wrote"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, ValueError):
        raise UserError(f"{path}: not JSON; allowed: {allowed}") from None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise UserError(f"{path}: no coefficients of format {FORMAT}; allowed: {allowed}")
    law = find_law(str(content.get("law")))
    if law.form is None:
        raise UserError(f"{path}: {law.name} has no fitted coefficients; allowed: {allowed}")
    try:
        values = {name: float(value) for name, value in content["coefficients"].items()}
        coefficients = coefficients_type(law)(**values)
        ranges = {name: (float(low), float(high)) for name, (low, high) in content["ranges"].items()}
        samples = np.array(content["samples"], dtype=float).reshape(-1, len(law.form.parameters))
        num_runs = int(content["fit"]["num_runs"])
    except (AttributeError, KeyError, TypeError, ValueError):
        raise UserError(f"{path}: damaged; allowed: {allowed}") from None
    numbers = [*values.values(), *(end for ends in ranges.values() for end in ends), *samples.flat]
    if not np.isfinite(numbers).all() or num_runs < 1 or not len(samples):
        raise UserError(f"{path}: damaged; allowed: {allowed}")
    return Fitted(law, coefficients, ranges, samples, num_runs)


def choose(law: Law, name_or_path: str | None) -> tuple[Any, Fitted | None]:
    """Coefficients by the name of a published set or from a file of this law; (None, None) leaves it to the law."""
    if name_or_path is None:
        return None, None
    if name_or_path in law.sets:
        return law.sets[name_or_path], None
    if not Path(name_or_path).exists():
        raise UserError(f"{law.name}: coefficients {name_or_path}: no such file; allowed: a file that `upmix laws fit` "
                        f"wrote, or {', '.join(law.sets)}")
    fitted = read_coefficients(Path(name_or_path))
    if fitted.law.name != law.name:
        raise UserError(f"{name_or_path}: coefficients of {fitted.law.name}; allowed here: of {law.name}")
    return fitted.coefficients, fitted


def plain(coefficients: Any) -> dict[str, Any]:
    """Coefficients as names and numbers."""
    return dataclasses.asdict(coefficients)
