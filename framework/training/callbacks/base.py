"""What a callback may hook into."""

from typing import Any


class Callback:
    """Watches training; every hook does nothing unless overridden. All run on each rank that has the callback."""

    def begin(self, step: int) -> None:
        """Before step `step` starts."""

    def beat(self) -> None:
        """A sign of life within a step: one forward of an evaluation is over."""

    def row(self, row: dict[str, Any]) -> None:
        """A row of metrics, as it stands in metrics.jsonl: `kind` is train, eval, tasks or experts."""

    def end(self, step: int) -> None:
        """Step `step` is over, its evaluation and the start of its checkpoint included."""

    def close(self) -> None:
        """Training is over, for whatever reason."""
