"""A finished or running experiment, as read from its folder."""

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from framework.errors import UserError
from framework.recipe import Loaded, load_recipe, sizes

FINAL_STEPS = 100


@dataclass(frozen=True)
class Run:
    """One run folder. `rows` are the lines of metrics.jsonl, in the order in which they were written."""

    path: Path
    rows: tuple[dict, ...]

    @property
    def name(self) -> str:
        return self.path.name

    @cached_property
    def loaded(self) -> Loaded:
        """The resolved recipe that the run was started from."""
        return load_recipe(str(self.path / "recipe.yaml"))

    @cached_property
    def sizes(self) -> dict:
        """Derived sizes, as `upmix show --json` prints them."""
        return sizes(self.loaded.architecture, self.loaded.recipe.data.seq_len)

    def table(self, kind: str = "train") -> dict[str, np.ndarray]:
        """The scalar fields of the rows of one kind as columns [rows], NaN where a row lacks the field."""
        rows = [row for row in self.rows if row["kind"] == kind]
        names = sorted({name for row in rows for name, value in row.items() if isinstance(value, int | float)})
        return {name: np.array([row.get(name, np.nan) for row in rows], dtype=float) for name in names}

    def series(self, metric: str) -> tuple[np.ndarray, np.ndarray]:
        """(steps, values) of the rows that hold the metric, whatever their kind."""
        rows = [row for row in self.rows if isinstance(row.get(metric), int | float)]
        pairs_R2 = np.array([(row["step"], row[metric]) for row in rows], dtype=float).reshape(-1, 2)
        return pairs_R2[:, 0], pairs_R2[:, 1]

    def final_loss(self) -> float:
        """The training loss that it ended with, in nats a token: the mean over its last 100 steps, or over the last
        tenth of a run of fewer than a thousand. Raises UserError where it has none."""
        steps, losses = self.series("loss")
        if not len(steps):
            raise UserError(f"{self.path}: no training loss in metrics.jsonl; allowed: a run that has trained")
        window = min(FINAL_STEPS, math.ceil(steps[-1] / 10))
        return float(losses[steps > steps[-1] - window].mean())

    def tokens_at(self, steps: np.ndarray) -> np.ndarray:
        """Tokens seen after each of the steps."""
        table = self.table("train")
        return np.interp(steps, table["step"], table["tokens"])

    def without_seed(self) -> str:
        """A key equal for runs that differ in nothing but the seed."""
        fields = self.loaded.recipe.model_dump(mode="json", exclude={"training": {"seed"}})
        return json.dumps(fields, sort_keys=True)


def load_runs(paths: Iterable[str | Path]) -> list[Run]:
    """Read run folders; a folder of run folders stands for all of them.

    Raises UserError for a path that is neither, and for a damaged line. A last one that a kill cut short is left out.
    """
    runs: list[Run] = []
    for path in map(Path, paths):
        found = [path] if (path / "metrics.jsonl").exists() else sorted(p.parent for p in path.glob("*/metrics.jsonl"))
        if not found:
            raise UserError(f"{path}: no run here; given a folder without metrics.jsonl, allowed: a run folder "
                            "or a folder of run folders")
        runs += [Run(folder, tuple(_rows(folder / "metrics.jsonl"))) for folder in found]
    return runs


def _rows(path: Path) -> Iterable[dict]:
    lines = path.read_bytes().splitlines()
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
        except ValueError:
            if number == len(lines):
                return
            row = None
        if not (isinstance(row, dict) and isinstance(row.get("kind"), str) and isinstance(row.get("step"), int)):
            raise UserError(f"{path}:{number}: damaged; allowed: a JSON object with kind and step")
        yield row
