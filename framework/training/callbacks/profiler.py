"""A trace of some steps, and a record of device memory, both on request."""

from pathlib import Path

import torch

from framework.training.callbacks.base import Callback


class Profiler(Callback):
    """Traces steps first..last, both included, into RUN/profile/rank_R.json (for chrome://tracing or Perfetto)."""

    def __init__(self, folder: Path, rank: int, steps: tuple[int, int]) -> None:
        self._first, self._last = steps
        self._path = folder / "profile" / f"rank_{rank}.json"
        self._profile: torch.profiler.profile | None = None

    def begin(self, step: int) -> None:
        if self._first <= step <= self._last and self._profile is None:
            self._profile = torch.profiler.profile(record_shapes=True)
            self._profile.start()

    def end(self, step: int) -> None:
        if step >= self._last:
            self.close()

    def close(self) -> None:
        if self._profile is not None:
            self._profile.stop()
            self._path.parent.mkdir(exist_ok=True)
            self._profile.export_chrome_trace(str(self._path))
            self._profile = None


class MemorySnapshot(Callback):
    """Records allocations on CUDA; written at the end as RUN/memory/rank_R.pickle (for pytorch.org/memory_viz)."""

    def __init__(self, folder: Path, rank: int) -> None:
        self._path = folder / "memory" / f"rank_{rank}.pickle"
        torch.cuda.memory._record_memory_history()

    def close(self) -> None:
        self._path.parent.mkdir(exist_ok=True)
        torch.cuda.memory._dump_snapshot(str(self._path))
        torch.cuda.memory._record_memory_history(enabled=None)
