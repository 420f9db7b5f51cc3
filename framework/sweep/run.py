"""Training the cells of a sweep on this machine."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from framework.errors import UserError
from framework.recipe import require_runnable
from framework.sweep.costs import is_finished
from framework.sweep.load import Cell, Sweep
from framework.training.parts import admit_parts, parts_of
from framework.trials.runs import Event, State, Trial, follow_trials


def run_sweep(sweep: Sweep, runs_dir: Path, at_once: int) -> Iterator[list[Event]]:
    """Train every cell into runs_dir/SWEEP/CELL, `at_once` at a time, and yield what happened since the last look.

    The first look holds all that is over already, and the cells whose folders hold something else (FAILED). The
    iterator must be closed for what runs to be stopped. Raises UserError before the first run where a cell cannot be
    trained by any.
    """
    folder = runs_dir / sweep.name
    if (folder / "recipe.yaml").exists():
        raise UserError(f"{folder}: a run, no folder of a sweep's runs; allowed: another --name")
    cells = {cell.name: cell for cell in sweep.cells}
    for cell in sweep.cells:
        _require_runnable(cell)
    refused = [event for cell in sweep.cells if (event := _refusal(cell, sweep, folder)) is not None]
    names = {event.trial.name for event in refused}
    trials = [_trial(cell, sweep) for cell in sweep.cells if cell.name not in names]
    looks = follow_trials(trials, folder, at_once, lambda trial: is_finished(cells[trial.name], trial.folder(folder)))
    yield [*refused, *next(looks)]
    yield from looks


def _trial(cell: Cell, sweep: Sweep) -> Trial:
    return Trial(cell.name, sweep.recipe, cell.overrides)


def _require_runnable(cell: Cell) -> None:
    try:
        require_runnable(cell.loaded)
    except UserError as error:
        raise UserError(f"cell {cell.name}: {error}") from None


def _refusal(cell: Cell, sweep: Sweep, folder: Path) -> Event | None:
    """That a folder which is there already cannot become or go on as this cell."""
    path = folder / cell.name
    if path.exists():
        try:
            admit_parts(parts_of(cell.loaded, path), resume=True)
        except UserError as error:
            return Event(_trial(cell, sweep), State.FAILED, str(error))
    return None
