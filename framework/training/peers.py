"""The ranks of a run as partners in small talk: objects over a gloo group of their own, never on the accelerator."""

from __future__ import annotations

import datetime
from collections.abc import Callable
from typing import Any, TypeVar

import torch.distributed as dist

from framework.errors import UserError
from framework.training.signals import Stopped

Result = TypeVar("Result")
# Others wait here while rank 0 prepares a corpus. A rank that dies ends the wait at once; the watchdog ends a hang.
PATIENCE = datetime.timedelta(days=30)


class Peers:
    """All ranks of the world, or this process alone where no world was started.

    Every instance has its own process group, so a background thread that owns one never mixes with the training's
    collectives. Creating one is collective; instances must be created in the same order everywhere.
    """

    def __init__(self) -> None:
        alone = not dist.is_initialized() or dist.get_world_size() == 1
        self.group = None if alone else dist.new_group(backend="gloo", timeout=PATIENCE)
        self.rank = 0 if alone else dist.get_rank()
        self.count = 1 if alone else dist.get_world_size()

    @property
    def leads(self) -> bool:
        """Whether this is rank 0, which alone writes the run folder."""
        return self.rank == 0

    def lead(self, function: Callable[[], Result]) -> Result:
        """Run a function on rank 0 alone and return its result everywhere; a UserError or Stopped of it is raised
        everywhere.
        """
        result = error = None
        if self.leads:
            try:
                result = function()
            except (UserError, Stopped) as raised:
                error = raised
        result, error = self.broadcast((result, error))
        if isinstance(error, Stopped):
            raise Stopped(error.signal)
        if error is not None:
            raise UserError(str(error))
        return result

    def broadcast(self, value: Any = None) -> Any:
        """Rank 0's value, on every rank."""
        if self.group is None:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0, group=self.group)
        return box[0]

    def gather(self, value: Any) -> list[Any]:
        """Every rank's value by rank, on every rank."""
        if self.group is None:
            return [value]
        values: list[Any] = [None] * self.count
        dist.all_gather_object(values, value, group=self.group)
        return values

    def barrier(self) -> None:
        """Wait until every rank is here."""
        self.gather(None)
