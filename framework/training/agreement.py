"""All ranks leave at the same point, whichever of them was asked to stop."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import Tensor

from framework.training.signals import Stopped, StopRequest

if TYPE_CHECKING:
    from framework.training.peers import Peers


def leave_if_asked(peers: Peers, request: StopRequest) -> None:
    """Collective; raise Stopped on every rank where one of them was asked to stop. request: this rank's."""
    if number := max(peers.gather(request.number)):
        raise Stopped(number)


class StopPoll:
    """Asked by all ranks after each forward of an evaluation, and as often, so that it must cost next to nothing.

    It sums up one number over gloo, from host to host: a collective of the accelerators would have to be read back,
    and the host would wait for all that they were given. And an answer is read with the next question, so that it
    travels while a forward runs; only a forward shorter than that waits for it.
    """

    def __init__(self, peers: Peers, request: StopRequest) -> None:
        self._group, self._request = peers.group, request
        self._asked: tuple[Tensor, dist.Work | None] | None = None

    def ask(self) -> int:
        """Collective. The signal that some rank had got when this was called before, or 0; then asks anew."""
        if number := self.answer():
            return number
        number = torch.tensor(self._request.number)
        alone = self._group is None
        work = None if alone else dist.all_reduce(number, dist.ReduceOp.MAX, self._group, async_op=True)
        self._asked = number, work
        return 0

    def answer(self) -> int:
        """The answer to the last question, once; 0 where none is open."""
        if self._asked is None:
            return 0
        (number, work), self._asked = self._asked, None
        if work is not None:
            work.wait()
        return int(number)
