"""How far long work has come, on standard error, so that standard output stays the answer's."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

SECONDS_BETWEEN_LINES = 30.0
"""Of a log, where a bar cannot be drawn over and over."""


@contextmanager
def bar(name: str, steps: int) -> Iterator[Callable[[], None]]:
    """A bar of so many steps, see `growing_bar`; gives the function to call after each."""
    with growing_bar(name) as advance:
        advance(0, steps)
        yield lambda: advance(1, 0)


@contextmanager
def growing_bar(name: str) -> Iterator[Callable[[int, int], None]]:
    """A bar of steps that are not known beforehand, drawn once there are some; the function to call takes how many
    more are done, and how many more there are. Where standard error is no terminal, a line now and then instead."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    if not console.is_terminal:
        yield _lines(name)
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task(name, total=0, visible=False)

        def advance(done: int, more: int) -> None:
            total = progress.tasks[0].total + more
            progress.update(task, advance=done, total=total, visible=total > 0)

        yield advance


def _lines(name: str) -> Callable[[int, int], None]:
    all_done, total, told = 0, 0, time.monotonic()

    def advance(done: int, more: int) -> None:
        nonlocal all_done, total, told
        all_done, total = all_done + done, total + more
        now = time.monotonic()
        if now - told >= SECONDS_BETWEEN_LINES:
            told = now
            print(f"{name}: {all_done} of {total}", file=sys.stderr, flush=True)

    return advance
