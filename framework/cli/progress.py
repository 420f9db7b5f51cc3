"""A progress bar on standard error, so that standard output stays the answer's."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def bar(name: str, steps: int) -> Iterator[Callable[[], None]]:
    """A bar of so many steps, drawn where standard error is a terminal; gives the function to call after each."""
    with growing_bar(name) as advance:
        advance(0, steps)
        yield lambda: advance(1, 0)


@contextmanager
def growing_bar(name: str) -> Iterator[Callable[[int, int], None]]:
    """The same of steps that are not known beforehand, drawn once there are some; the function to call takes how many
    more are done, and how many more there are."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(name, total=0, visible=False)

        def advance(done: int, more: int) -> None:
            total = progress.tasks[0].total + more
            progress.update(task, advance=done, total=total, visible=total > 0)

        yield advance
