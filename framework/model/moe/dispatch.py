"""How tokens reach the experts: the interface, and the body for experts that are all here."""

from collections.abc import Callable
from typing import Protocol

from torch import Tensor

from framework.model.moe.assignment import Assignment

ExpertFunction = Callable[[Tensor, Assignment], Tensor]


class Dispatcher(Protocol):
    """Carries rows to their experts and the outputs back.

    bytes_sent: to other ranks, in the last call; a tensor of one number where the host does not know it.
    """

    bytes_sent: int | Tensor

    def __call__(self, x_TD: Tensor, assignment: Assignment, experts: ExpertFunction) -> Tensor:
        """y_TD in the dtype of x_TD: per token, the sum of its experts' outputs times their gates.

        experts maps tokens and an assignment of them to the experts of this rank to such a sum.
        """


class LocalDispatcher:
    """All experts are here."""

    bytes_sent = 0

    def __call__(self, x_TD: Tensor, assignment: Assignment, experts: ExpertFunction) -> Tensor:
        return experts(x_TD, assignment)
