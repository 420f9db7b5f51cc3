"""How routing learns of tokens on other ranks: the interface, and the body for one rank that has all.

B batch, S sequence.
"""

from dataclasses import dataclass, field

from torch import Tensor


class Parts:
    """Equal parts of a tensor, one on each of `count` ranks, and what these know together: here one rank has it all.

    Nothing has a gradient. With several ranks every method but `own` is collective over them.
    """

    count = 1

    def sum(self, x: Tensor) -> Tensor:
        """The sum of all ranks' x."""
        return x.detach()

    def gather(self, x: Tensor, dim: int) -> Tensor:
        """All ranks' x along dim, in their order."""
        return x.detach()

    def own(self, whole: Tensor, dim: int) -> Tensor:
        """This rank's part of what `gather` gives."""
        return whole


@dataclass(frozen=True)
class TokenParts:
    """How the tokens [B, S] of a forward lie on ranks.

    sequence: ranks with consecutive parts of the same sequences, along S. batch: ranks with the same positions of
    other sequences, along B. forward: all of them.
    """

    sequence: Parts = field(default_factory=Parts)
    batch: Parts = field(default_factory=Parts)
    forward: Parts = field(default_factory=Parts)
