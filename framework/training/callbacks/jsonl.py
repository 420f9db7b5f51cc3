"""Rows into metrics.jsonl."""

from pathlib import Path
from typing import Any

from framework.training.callbacks.base import Callback
from framework.training.metrics import MetricsFile


class JsonLines(Callback):
    """Appends every row to the run's metrics.jsonl."""

    def __init__(self, folder: Path) -> None:
        self._file = MetricsFile(folder)

    def row(self, row: dict[str, Any]) -> None:
        self._file.append(row)

    def close(self) -> None:
        self._file.close()
