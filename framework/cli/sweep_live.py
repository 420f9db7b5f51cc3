"""What `upmix sweep run` shows while cells train: a live table, or a line for each event where nobody watches."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table

    from framework.sweep import Sweep
    from framework.trials.runs import Event

SECONDS = 1.0  # between two drawings of the table
LAST = 5  # cells that ended, in the table
WAITING = "waiting"


def follow(sweep: Sweep, folder: Path, looks: Iterator[list[Event]]) -> dict[str, str]:
    """Show events until the last one; the cells that failed and why. folder: of the sweep's run folders."""
    from rich.console import Console

    console = Console()
    board = _Board(sweep, folder)
    with closing(looks):
        if console.is_terminal:
            _draw(console, board, looks)
        else:
            for number, events in enumerate(looks):
                for line in board.take(events, is_first=number == 0):
                    print(line, flush=True)
    print(board.summary())
    return board.failures


def _draw(console, board: _Board, looks: Iterator[list[Event]]) -> None:
    from rich.live import Live

    drawn = 0.0
    with Live(console=console, auto_refresh=False) as live:
        for number, events in enumerate(looks):
            board.take(events, is_first=number == 0)
            if events or time.monotonic() - drawn >= SECONDS:
                live.update(board.table(), refresh=True)
                drawn = time.monotonic()
        live.update(board.table(), refresh=True)


class _Board:
    """The state of every cell, and how far the running ones have come by their metrics."""

    def __init__(self, sweep: Sweep, folder: Path) -> None:
        from framework.sweep.fields import budget_of

        self.folder = folder
        self.states = {cell.name: WAITING for cell in sweep.cells}
        self.num_steps = {cell.name: budget_of(cell.loaded).num_steps for cell in sweep.cells}
        self.failures: dict[str, str] = {}
        self._ended: list[str] = []

    def take(self, events: list[Event], is_first: bool) -> list[str]:
        """Note what happened; a line for each event, one for all that was over before."""
        from framework.trials.runs import State

        for event in events:
            self.states[event.trial.name] = event.state.value
            if event.state is State.FAILED:
                self.failures[event.trial.name] = event.said
            if event.state is not State.STARTED and not is_first:
                self._ended.append(event.trial.name)
        lines = [f"{event.trial.name}: {self._told(event)}" for event in events
                 if not is_first or event.state is State.FAILED]
        finished = sum(event.state is State.FINISHED for event in events)
        return [f"{finished} of {len(self.states)} cells were finished before", *lines] if is_first else lines

    def table(self) -> Table:
        """The running cells, the last ones that ended, and how many are in which state."""
        from rich.box import SIMPLE
        from rich.table import Table
        from rich.text import Text

        table = Table(box=SIMPLE, caption=Text(self.summary()), caption_justify="left")
        table.add_column("cell", overflow="fold")
        for name in ("state", "step", "loss", "tokens/s", "left"):
            table.add_column(name, justify="right")
        running = [name for name, state in self.states.items() if state == "started"]
        for name in (*self._ended[-LAST:], *running):
            table.add_row(*map(Text, (name, self.states[name], *self._numbers(name))))
        return table

    def summary(self) -> str:
        """How many cells are in which state."""
        counts = Counter(self.states.values())
        return f"{len(self.states)} cells: " + ", ".join(f"{count} {state}" for state, count in counts.items())

    def _told(self, event: Event) -> str:
        seen = self._progress(event.trial.name)
        loss = f", loss {seen.loss:.4f}" if event.state == "finished" and seen.loss is not None else ""
        return f"{event.state}{loss}" + (f": {event.said}" if event.said else "")

    def _numbers(self, name: str) -> tuple[str, ...]:
        seen = self._progress(name)
        return (f"{seen.step:,} of {seen.num_steps:,}", "" if seen.loss is None else f"{seen.loss:.4f}",
                "" if seen.tokens_per_second is None else f"{seen.tokens_per_second:,.0f}",
                "" if not seen.seconds_left else str(timedelta(seconds=round(seen.seconds_left))))

    def _progress(self, name: str):
        from slurm.host import Host
        from slurm.progress import progress

        return progress(Host(), [str(self.folder / name)], [self.num_steps[name]])[0]
