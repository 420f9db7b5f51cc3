"""What a person sees of a search for rates while it runs: a table that is redrawn on a terminal, lines elsewhere."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console
from rich.live import Live
from rich.table import Table

if TYPE_CHECKING:
    from collections.abc import Callable

    from framework.trials.rate_tuning import Tuning


@contextmanager
def watching() -> Iterator[Callable[[Tuning], None]]:
    """A function that shows how far a search is, on standard error, for as long as the block lasts."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda tuning: print(line(tuning), file=console.file, flush=True)
        return
    with Live(console=console, auto_refresh=False) as live:
        yield lambda tuning: live.update(table(tuning), refresh=True)


def line(tuning: Tuning) -> str:
    """One line: trials over, pass, the best loss and the fields that have moved."""
    progress = tuning.progress
    moved = [f"{field.name} {field.value(times):g}"
             for field, times in zip(tuning.searched.fields, progress.best, strict=True) if times != 1]
    return f"{_heading(tuning)}: {', '.join(moved) or 'every field at its start'}"


def table(tuning: Tuning) -> Table:
    """The fields with where they started and where the best has them."""
    shown = Table(title=_heading(tuning), title_justify="left", box=None)
    for column in ("field", "start", "best"):
        shown.add_column(column, justify="left" if column == "field" else "right")
    for field, times in zip(tuning.searched.fields, tuning.progress.best, strict=True):
        style = "" if times == 1 else "bold"
        shown.add_row(field.name, f"{field.start:g}", f"{field.value(times):g}", style=style)
    return shown


def _heading(tuning: Tuning) -> str:
    progress = tuning.progress
    best = tuning.losses.get(progress.best, math.inf)
    loss = f"loss {best:.4f}" if math.isfinite(best) else "no finite loss yet"
    return (f"trials {len(tuning.losses)}, pass {progress.number} of at most {tuning.search.num_passes}, "
            f"changes kept {len(progress.accepted) - 1}, {loss}")
