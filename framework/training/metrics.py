"""metrics.jsonl: every number of a run, one JSON object a line."""

import json
import math
from pathlib import Path
from typing import Any

from framework.errors import UserError
from framework.files import write_atomically

FILE_NAME = "metrics.jsonl"


class MetricsFile:
    """Appends rows, each flushed so that a kill loses none that was reported."""

    def __init__(self, folder: Path):
        self._file = (folder / FILE_NAME).open("a")

    def append(self, row: dict[str, Any]) -> None:
        """Write one row; NaN and infinities become null, which every JSON reader takes."""
        self._file.write(json.dumps(_finite(row)) + "\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def cut_rows_after(folder: Path, step: int) -> None:
    """Drop the rows past a step, and a line that a kill left torn, so that no step stands twice after a resume."""
    path = folder / FILE_NAME
    if not path.exists():
        return
    kept = []
    lines = path.read_text().splitlines()
    for number, line in enumerate(lines, start=1):
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line + "\n")
        except json.JSONDecodeError:
            if number < len(lines):
                raise UserError(f"{path}:{number}: not a JSON object") from None
    write_atomically(path, "".join(kept))


def kinds_of_rows(folder: Path, step: int) -> frozenset[str]:
    """Which kinds of rows stand there for a step. Every line must be whole, as `cut_rows_after` leaves them."""
    path = folder / FILE_NAME
    rows = map(json.loads, path.read_text().splitlines()) if path.exists() else ()
    return frozenset(row["kind"] for row in rows if row["step"] == step)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
