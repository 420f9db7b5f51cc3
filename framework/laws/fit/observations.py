"""Runs as the columns that a law is fitted to, read from a CSV file or from run folders."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from framework.errors import UserError
from framework.laws.fine_grained_shape import total_of_active
from framework.laws.fit.form import Form

if TYPE_CHECKING:
    from framework.report import Run

LOSS = "loss"
SAME = {
    "num_params": ("num_params_total", "num_params_active"),
    "num_params_total": ("num_params", "num_params_active"),
}
"""Of dense laws: other names of a column."""

METRICS = ("loss", "val_loss")


@dataclass(frozen=True)
class Observations:
    """Columns [R] of the form, losses [R] in nats a token, names of the runs, and the value of the shared column."""

    columns: Mapping[str, np.ndarray]
    losses: np.ndarray
    names: tuple[str, ...]
    shared: dict[str, float]


def read_csv(form: Form, path: Path) -> Observations:
    """Runs of a CSV file: a header with the form's columns and `loss`; `run` or `name` are names, others are ignored.

    Raises UserError for a file that cannot be read so, with the line.
    """
    with path.open(newline="", encoding="utf-8") as file:
        try:
            rows = list(csv.DictReader(file))
        except (csv.Error, UnicodeDecodeError) as error:
            raise UserError(f"{path}: {error}; allowed: CSV in UTF-8") from None
    where = [f"{path}:{number}" for number in range(2, len(rows) + 2)]
    names = [row.get("run") or row.get("name") or f"line {number}" for number, row in enumerate(rows, start=2)]
    return gather(form, rows, where, names, str(path))


def read_runs(form: Form, runs: Sequence[Run], metric: str = LOSS) -> tuple[Observations, list[str]]:
    """Finished runs, and a line for each that is left out.

    metric: `loss`, the training loss as `Run.final_loss` has it, or `val_loss`, the last evaluation's.
    """
    if metric not in METRICS:
        raise UserError(f"--metric {metric}; allowed: {', '.join(METRICS)}")
    rows, where, names, left_out = [], [], [], []
    for run in runs:
        if not (run.path / "DONE").exists():
            left_out.append(f"{run.path}: not finished (no DONE): left out")
            continue
        rows.append(_numbers(form, run) | {LOSS: final_loss(run, metric)})
        where.append(str(run.path))
        names.append(run.name)
    return gather(form, rows, where, names, "these runs"), left_out


def final_loss(run: Run, metric: str) -> float:
    """The loss that a run ended with. Raises UserError where it holds none."""
    if metric == LOSS:
        return run.final_loss()
    _, values = run.series(metric)
    if not len(values):
        raise UserError(f"{run.path}: no {metric} in metrics.jsonl; allowed: --metric {' or '.join(METRICS)}")
    return float(values[-1])


def read(
    law_name: str, runs: Sequence[Path], csv_file: Path | None, metric: str
) -> tuple[Form, Observations, list[str]]:
    """The form of a law, its runs from folders or a table, and what was left out. Raises UserError for none or both."""
    from framework.laws.registry import LAWS, find_law
    from framework.report import load_runs

    form = find_law(law_name).form
    if form is None:
        others = ", ".join(name for name, law in LAWS.items() if law.form is not None)
        raise UserError(f"{law_name} is not fitted; allowed: {others}")
    if (csv_file is None) == (not runs):
        raise UserError(f"{len(runs)} folders and {'no' if csv_file is None else 'a'} table given; allowed: run "
                        "folders, or --csv FILE")
    if csv_file is not None and metric != LOSS:
        raise UserError(f"--metric {metric} with --csv; allowed: with run folders, a table has the one column {LOSS}")
    if csv_file is not None:
        return form, read_csv(form, csv_file), []
    return form, *read_runs(form, load_runs(runs), metric)


def gather(
    form: Form, rows: Sequence[Mapping[str, object]], where: Sequence[str], names: Sequence[str], place: str
) -> Observations:
    """The form's columns of rows of text or numbers. Raises UserError for what is missing, no number, or too few."""
    if len(rows) <= len(form.parameters):
        raise UserError(f"{place}: {len(rows)} runs; allowed: more than the {len(form.parameters)} coefficients of "
                        f"{form.law}")
    shared = _shared(form, rows, where)
    columns = {name: _column(form, name, rows, where, shared) for name in form.columns}
    losses = np.array([_number(row, LOSS, at) for row, at in zip(rows, where, strict=True)])
    return Observations(columns, losses, tuple(map(str, names)), shared)


def _column(
    form: Form, name: str, rows: Sequence[Mapping[str, object]], where: Sequence[str], shared: Mapping[str, float]
) -> np.ndarray:
    source, factor = name, 1.0
    if name not in rows[0]:
        if form.shared and name == "num_params_total" and "num_params_active" in rows[0]:
            source, factor = "num_params_active", total_of_active(1.0, shared["expansion_rate"])
        elif form.law != "joint":
            source = next((other for other in SAME.get(name, ()) if other in rows[0]), name)
    return np.array([factor * _number(row, source, at) for row, at in zip(rows, where, strict=True)])


def _shared(form: Form, rows: Sequence[Mapping[str, object]], where: Sequence[str]) -> dict[str, float]:
    if form.shared is None:
        return {}
    if form.shared not in rows[0]:
        return {form.shared: 64.0}
    values = {_number(row, form.shared, at) for row, at in zip(rows, where, strict=True)}
    if len(values) > 1:
        given = ", ".join(f"{value:g}" for value in sorted(values))
        raise UserError(f"{form.law}: runs of {form.shared} {given}; allowed: one {form.shared} for each fit")
    return {form.shared: values.pop()}


def _number(row: Mapping[str, object], name: str, where: str) -> float:
    if name not in row:
        given = ", ".join(str(column) for column in row)
        raise UserError(f"{where}: {name} is missing; given {given[:200]}; allowed: the law's numbers, and loss")
    try:
        value = float(row[name])
    except (TypeError, ValueError):
        value = math.nan
    if not (math.isfinite(value) and value > 0):
        raise UserError(f"{where}: {name} {row[name]!r}; allowed: a positive number")
    return value


def _numbers(form: Form, run: Run) -> dict[str, float]:
    """A run's numbers as the form's law counts them: with embeddings for the joint law and Chinchilla's."""
    sizes = run.sizes
    moe = sizes["num_experts"] is not None
    active, total = sizes["params_active_non_embedding"], sizes["params_total_non_embedding"]
    tokens = float(run.table("train")["tokens"][-1])
    if form.law == "fine_grained":
        if not moe or not sizes["expansion_rate"] or not sizes["granularity"]:
            raise UserError(f"{run.path}: no experts of whole expansion rate and granularity; allowed for "
                            f"{form.law}: mixtures of experts")
        return {"num_params_total": total, "tokens": tokens, "granularity": sizes["granularity"],
                "expansion_rate": sizes["expansion_rate"]}
    if form.law == "joint":
        if moe and sizes["top_k"] != 1:
            raise UserError(f"{run.path}: top_k {sizes['top_k']}; allowed for {form.law}: 1, its experts are whole")
        return {"num_params_active": active + sizes["params_embedding"], "tokens": tokens,
                "num_experts": sizes["num_experts"] if moe else 1}
    if moe:
        raise UserError(f"{run.path}: a mixture of experts; allowed for {form.law}: dense models")
    size = total + (sizes["params_embedding"] if form.law == "chinchilla" else 0)
    return {form.columns[0]: size, "tokens": tokens}


def ranges(columns: Mapping[str, Iterable[float]]) -> dict[str, list[float]]:
    """Least and largest value of each column."""
    return {name: [float(min(values)), float(max(values))] for name, values in columns.items()}
