"""What a person sees: a bar with the time left on a terminal, now and then a plain line elsewhere."""

import logging
import time
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from framework.training.callbacks.base import Callback

logger = logging.getLogger(__name__)
SECONDS_BETWEEN_LINES = 10.0
EVALUATIONS = ("eval", "tasks")


class ProgressBar(Callback):
    """A bar over optimizer steps with loss, speed and time left."""

    def __init__(self, console: Console, first_step: int, num_steps: int) -> None:
        self._progress = Progress(
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
            TextColumn("left"), TimeRemainingColumn(), console=console,
        )
        self._task = self._progress.add_task("training", total=num_steps, completed=first_step - 1)
        self._progress.start()

    def row(self, row: dict[str, Any]) -> None:
        if row["kind"] == "train":
            self._progress.update(self._task, completed=row["step"], description=describe(row))
        elif row["kind"] in EVALUATIONS:
            logger.info("step %d: %s", row["step"], describe(row))

    def end(self, step: int) -> None:
        self._progress.update(self._task, completed=step)

    def close(self) -> None:
        self._progress.stop()


class ProgressLines(Callback):
    """A line every SECONDS_BETWEEN_LINES, and for every evaluation."""

    def __init__(self, num_steps: int) -> None:
        self._num_steps = num_steps
        self._last = 0.0

    def row(self, row: dict[str, Any]) -> None:
        due = time.monotonic() - self._last > SECONDS_BETWEEN_LINES or row["step"] == self._num_steps
        if row["kind"] in EVALUATIONS or (row["kind"] == "train" and due):
            self._last = time.monotonic()
            logger.info("step %d of %d: %s", row["step"], self._num_steps, describe(row))


def describe(row: dict[str, Any]) -> str:
    """A row in a few words."""
    if row["kind"] == "eval":
        bits = row["val_bits_per_byte"]
        return f"validation loss {row['val_loss']:.4f}" + (f", bits per byte {bits:.4f}" if bits is not None else "")
    if row["kind"] == "tasks":
        return ", ".join(f"{name} {value:.4f}" for name, value in row.items() if name not in ("kind", "step"))
    return f"loss {row['loss']:.4f}, {row['tokens_per_second']:,.0f} tokens/s"
