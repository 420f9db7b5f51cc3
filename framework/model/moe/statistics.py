"""What a mixture of experts counts as it runs."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor


class RoutingStatistics:
    """Sums over the forwards of this rank, until they are taken."""

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.is_paused = False

    def add(self, **values: Tensor) -> None:
        """Add what one forward counted. Every forward names the same values."""
        if self.is_paused:
            return
        for name, value in values.items():
            self.sums[name] = self.sums[name] + value.detach() if name in self.sums else value.detach()

    def take(self) -> dict[str, Tensor]:
        """The sums; they start again at nothing."""
        taken, self.sums = self.sums, {}
        return taken

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Within it nothing is added: for a forward that is computed a second time."""
        self.is_paused = True
        try:
            yield
        finally:
            self.is_paused = False
