"""What a mixture of experts counts as it runs."""

from torch import Tensor


class RoutingStatistics:
    """Sums over the forwards of this rank, until they are taken."""

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}

    def add(self, **values: Tensor) -> None:
        """Add what one forward counted. Every forward names the same values."""
        for name, value in values.items():
            self.sums[name] = self.sums[name] + value.detach() if name in self.sums else value.detach()

    def take(self) -> dict[str, Tensor]:
        """The sums; they start again at nothing."""
        taken, self.sums = self.sums, {}
        return taken
