"""Metrics of several runs as one table."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path

from framework.files import write_atomically
from framework.report.runs import Run


def write_csv(runs: Sequence[Run], out: Path) -> Path:
    """One line a row of metrics.jsonl, scalars only, with the run's name, seed and active parameters before them."""
    names = sorted({name for run in runs for row in run.rows for name, value in row.items() if _is_scalar(value)})
    first = ["kind", "step"]
    columns = first + [name for name in names if name not in first]
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(["run", "seed", "params_active", *columns])
    for run in runs:
        head = [run.name, run.loaded.recipe.training.seed, run.sizes["params_active"]]
        writer.writerows(head + [row.get(name, "") for name in columns] for row in run.rows)
    write_atomically(out, text.getvalue())
    return out


def _is_scalar(value: object) -> bool:
    return isinstance(value, int | float | str)
