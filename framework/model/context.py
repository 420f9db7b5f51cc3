"""What a sublayer may know of the batch besides its input."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Context:
    """The batch that a forward belongs to.

    position_BS: int64, a token's place in its sequence (rotary positions); None: 0..S-1, after what a cache holds.
    document_BS: int64, non-decreasing along S, of the whole sequence also where a rank holds part of it; tokens of
        different value must not see each other. None: all may.
    num_sequences: sequences of the whole optimizer step over all ranks. Auxiliary losses are sums over sequences
        divided by it, so that each rank's is a share and gradients are summed everywhere.
    """

    position_BS: Tensor | None = None
    document_BS: Tensor | None = None
    num_sequences: float = 1.0
