"""Who takes which sequences of a step: pure functions."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from framework.recipe.schema import Data


def forward_size(data: Data, count: int) -> int:
    """Sequences of the largest forward on one of `count` data-parallel ranks."""
    return data.micro_batch_size or data.batch_size // count


def micro_batches(
    first_sample: int, batch_size: int, micro_batch_size: int | None, index: int, count: int
) -> Iterator[tuple[int, int]]:
    """Yield (first sample, number of samples) of each forward of data-parallel rank `index` out of `count`.

    The ranks take contiguous shares of the step's samples, so that the step sees the same samples on any layout.
    """
    share, rest = divmod(batch_size, count)
    assert rest == 0, f"{batch_size} sequences do not divide over {count} ranks"
    size = min(micro_batch_size or share, share)
    for taken in range(0, share, size):
        yield first_sample + index * share + taken, min(size, share - taken)
