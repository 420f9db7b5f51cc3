"""One rank asks lm-eval's questions, and all score them together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from torch import Tensor

    from framework.tasks.rows import Row
    from framework.tasks.scoring import Scorer

Result = TypeVar("Result")


class BrokenOff(Exception):
    """Scoring was stopped in between."""


class Team:
    """The ranks of a scorer. Only rank 0 has tasks, and needs the package; it tells the others which rows come next.

    broadcast: rank 0's value, on every rank (`Peers.broadcast`); the default is for one process.
    """

    def __init__(self, scorer: Scorer, broadcast: Callable[[Any], Any] = lambda value: value) -> None:
        self.scorer, self._broadcast = scorer, broadcast

    def score(self, rows: Sequence[Row]) -> Tensor:
        """On rank 0 within `lead`: what `Scorer.score` gives. Raises BrokenOff where that was told not to go on."""
        results = self.scorer.score(self._broadcast(rows)) if rows else self._nothing()
        if results is None:
            raise BrokenOff
        return results

    def lead(self, function: Callable[[], Result]) -> Result | None:
        """On rank 0, while the others are in `follow`: run a function that calls `score`; None where it was broken off.

        An error of the function is one of all ranks.
        """
        try:
            result = function()
        except BrokenOff:
            return None  # the others know
        except Exception as error:
            self._broadcast(f"{type(error).__name__}: {error}")
            raise
        self._broadcast(None)
        return result

    def follow(self) -> None:
        """On the other ranks: score what rank 0 asks for until it is through. Raises RuntimeError where it failed."""
        while (told := self._broadcast(None)) is not None:
            if isinstance(told, str):
                raise RuntimeError(f"tasks on rank 0: {told}")
            if self.scorer.score(told) is None:
                return

    def _nothing(self) -> Tensor:
        import torch

        return torch.zeros(0, 3, dtype=torch.float64)
