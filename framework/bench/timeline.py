"""Time of a step by phase, on the host's clock or the GPU's: marks between phases, of which one is open at a time."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any

import torch

OTHER = "other"
SWALLOWS = "backward"
"""A phase that no other one interrupts: what is computed again in the backward is the backward's."""


class Timeline:
    """Phases may stand in one another; time is the innermost one's alone, and `OTHER`'s where none is open.

    So the phases of a step sum to the step. On a GPU a mark is an event of the current stream: a phase has the time for
    which the stream was at its work, or waited for it to come.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._open = [OTHER]
        self._marks: list[tuple[str, Any]] = []  # the phase that begins at each mark

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Within the block it is this phase's time."""
        self.enter(name)
        try:
            yield
        finally:
            self.leave()

    def enter(self, name: str) -> None:
        """Open a phase within the one that is open."""
        self._open.append(SWALLOWS if self._open[-1] == SWALLOWS else name)
        self._mark()

    def leave(self) -> None:
        """Close the innermost phase."""
        self._open.pop()
        self._mark()

    def within(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The same function, as a phase."""

        @wraps(function)
        def timed(*arguments: Any, **named: Any) -> Any:
            with self.phase(name):
                return function(*arguments, **named)

        return timed

    def start(self) -> None:
        """Forget what was measured, and begin now."""
        assert len(self._open) == 1, f"{self._open[1:]} are open"
        self._marks.clear()
        self._mark()

    def stop(self) -> dict[str, float]:
        """Seconds of each phase since `start`; their sum is all the time since."""
        self._mark()
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        seconds: dict[str, float] = {}
        for (name, begin), (_, end) in zip(self._marks, self._marks[1:], strict=False):
            seconds[name] = seconds.get(name, 0.0) + self._between(begin, end)
        return seconds

    def _mark(self) -> None:
        if self.device.type == "cuda":
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self._marks.append((self._open[-1], event))
        else:
            self._marks.append((self._open[-1], time.perf_counter()))

    def _between(self, begin: Any, end: Any) -> float:
        return begin.elapsed_time(end) / 1e3 if self.device.type == "cuda" else end - begin
