"""Tuning a recipe's rates by training it: the folder of a search, its trials, and what they lead to.

    search.json      the recipe and the fields that are searched: what the search is, and all its state beside trials
    trials/NNNN/     the run of each point, in the order in which the search wanted them; 0000 is the recipe as it is
    trials.csv       a line for each that is over: loss, whether it became the best, the value of every field
    search.png       the same as a picture
    fragment.yaml    the best found, for a larger recipe to extend
"""

from __future__ import annotations

import csv
import io
import json
import math
import os
import shutil
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from framework.errors import UserError
from framework.files import write_atomically
from framework.recipe import require_runnable
from framework.recipe.tree import flatten
from framework.training.lock import lock_folder
from framework.training.preconditions import mesh_sizes
from framework.trials.rate_fields import Searched, fragment
from framework.trials.rate_search import FACTORS, Point, Progress, Search, replay
from framework.trials.runs import Trial, loss_of, run_trials

STATE, TRIALS, TABLE, PICTURE, FRAGMENT = "search.json", "trials", "trials.csv", "search.png", "fragment.yaml"

Run = Callable[[Sequence[Trial], Path, int], Generator[Trial, None, None]]
"""As `run_trials`: train into folders, some at once, yielding each trial that is over."""


@dataclass
class Tuning:
    """A search in a folder. `losses` are those of the trials that are over, in nats a token."""

    searched: Searched
    search: Search
    path: Path
    losses: dict[Point, float]

    @property
    def progress(self) -> Progress:
        """How far the losses known so far lead."""
        return replay(self.search, self.losses, self.searched.allows)

    def trial(self, progress: Progress, point: Point) -> Trial:
        """The run of a point, named by when the search first wanted it."""
        number = progress.trials.index(point)
        return Trial(f"{number:04d}", self.searched.recipe, self.searched.trial_overrides(point))

    def summary(self) -> dict[str, Any]:
        """What was found, as `--json` prints it; a loss is null where the run diverged."""
        progress = self.progress
        best, first = (self.losses.get(point, math.inf) for point in (progress.best, self.search.start()))
        return {
            "values": self.searched.values(progress.best), "loss": _finite(best), "baseline_loss": _finite(first),
            "trials": len(self.losses), "passes": progress.number, "converged": progress.converged,
            "fragment": str(self.path / FRAGMENT), "picture": str(self.path / PICTURE),
        }


def tune(
    searched: Searched, search: Search, path: Path, at_once: int,
    watch: Callable[[Tuning], None] = lambda tuning: None, run: Run = run_trials,
) -> Tuning:
    """Search until it is over, or go on with a search that was interrupted; returns it with every loss.

    watch: called whenever a trial is over. Files other than search.json are written after every four trials or so.
    Raises UserError where the folder holds another search, or a trial fails otherwise than by diverging.
    """
    require_runnable(searched.loaded)
    path.mkdir(parents=True, exist_ok=True)
    with closing(lock_folder(path)):
        _hold_definition(path, searched, search)
        tuning = Tuning(searched, search, path, {})
        while (progress := tuning.progress).wanted:
            trials = {tuning.trial(progress, point): point for point in progress.wanted}
            with closing(run(list(trials), path / TRIALS, at_once)) as over:
                for trial in over:
                    tuning.losses[trials[trial]] = loss_of(trial, path / TRIALS)
                    _drop_checkpoints(trial.folder(path / TRIALS))
                    watch(tuning)
            _write_findings(tuning)
    return tuning


def room_for(searched: Searched) -> int:
    """How many trials this machine's cores have room for at a time: no more than a field has variants."""
    cores = len(os.sched_getaffinity(0)) // mesh_sizes(searched.loaded.recipe.parallel).world
    return min(len(FACTORS), max(1, cores))


def _hold_definition(path: Path, searched: Searched, search: Search) -> None:
    """Store what is searched, or see to it that the folder's search is the same one; the number of passes may grow."""
    recipe = searched.loaded.recipe.model_dump(mode="json", exclude={"description", "parallel", "checkpoint"})
    given = {
        "format": 1, "seed": search.seed, "fields": {field.key: field.start for field in searched.fields},
        "recipe": recipe,
    }
    if not (path / STATE).exists():
        if foreign := sorted(entry.name for entry in path.iterdir() if not entry.name.startswith(".")):
            raise UserError(f"{path}: there, but no search ({foreign[0]} in it); allowed: another --name")
        write_atomically(path / STATE, json.dumps(given, indent=1) + "\n")
        return
    try:
        stored = json.loads((path / STATE).read_text())
    except ValueError:
        raise UserError(f"{path / STATE}: damaged; allowed: what a search wrote") from None
    before, after = flatten(stored), flatten(given)
    for key in [key for key in before | after if before.get(key) != after.get(key)]:
        raise UserError(f"{path}: holds a search that differs in {key}: {before.get(key)}, given {after.get(key)}; "
                        "allowed: the same again, or another --name")


def _drop_checkpoints(folder: Path) -> None:
    """Only losses are asked of a trial; checkpoints of hundreds would fill a disk."""
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)


def _write_findings(tuning: Tuning) -> None:
    from framework.trials.rate_figure import draw_search

    found, progress = tuning.summary(), tuning.progress
    state = "a pass changed nothing" if found["converged"] else f"pass {found['passes']} of {tuning.search.num_passes}"
    comment = [
        f"Rates found by `upmix tune rlrs {tuning.searched.recipe}`: {found['trials']} trials, {state}.",
        f"Training loss {_text(found['loss'])} nats a token; of the recipe as it was {_text(found['baseline_loss'])}.",
    ]
    write_atomically(tuning.path / TABLE, _table(tuning, progress))
    write_atomically(tuning.path / FRAGMENT, fragment(tuning.searched, progress.best, comment))
    draw_search(tuning, tuning.path / PICTURE)


def _table(tuning: Tuning, progress: Progress) -> str:
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(["trial", "loss", "accepted", *(field.key for field in tuning.searched.fields)])
    for number, point in enumerate(progress.trials):
        if point in tuning.losses:
            values = tuning.searched.values(point).values()
            writer.writerow([f"{number:04d}", tuning.losses[point], point in progress.accepted, *values])
    return text.getvalue()


def _finite(loss: float) -> float | None:
    return loss if math.isfinite(loss) else None


def _text(loss: float | None) -> str:
    return "none, it diverged" if loss is None else f"{loss:.4f}"
