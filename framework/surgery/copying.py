"""Experts as copies of a dense block, or of some of its hidden units."""

from torch import Tensor


def take_units(matrix: Tensor, units: range, dim: int) -> Tensor:
    """The hidden units of a matrix that an expert takes: a view.

    matrix: gate or up [F, D] with dim 0, down [D, F] with dim 1. All F units are sparse upcycling's copy
    (https://arxiv.org/abs/2212.05055); a shard of F / G of them is granular upcycling's, whose shards stand E times
    each, in the order [shard 0 .. shard G-1] repeated (https://arxiv.org/abs/2410.07524). Units of a feed-forward block
    do not see each other, so that down(act(up x)) is the sum of its shards' outputs.
    """
    return matrix.narrow(dim, units.start, len(units))
