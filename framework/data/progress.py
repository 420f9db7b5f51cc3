"""A progress bar over bytes, with speed and time left, on standard error."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager


class Bar:
    """What a piece of work tells of itself while the bar is shown."""

    def __init__(self, progress, task):
        self._progress, self._task = progress, task

    def advance(self, num_bytes: int) -> None:
        self._progress.advance(self._task, num_bytes)

    def tell(self, message: str) -> None:
        """Print a line above the bar, or alone where none is shown."""
        self._progress.console.print(message, markup=False, highlight=False, soft_wrap=True)


@contextmanager
def progress_bar(description: str, num_bytes: int, shown: bool) -> Iterator[Bar]:
    """A bar from 0 to `num_bytes`, gone when the work is over; shown on a terminal only."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    columns = [BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn()]
    console = Console(file=sys.stderr)
    disable = not (shown and console.is_terminal)
    with Progress(
        TextColumn("{task.description}"), *columns, console=console, disable=disable, transient=True
    ) as progress:
        yield Bar(progress, progress.add_task(description, total=num_bytes))
