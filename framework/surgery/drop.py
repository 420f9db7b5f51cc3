"""Drop-upcycling: a share of each expert's hidden units starts anew."""

from torch import Generator, Tensor

from framework.surgery.randomness import normal


def redraw_units(matrix: Tensor, units: Tensor, dim: int, source: Generator) -> Tensor:
    """A copy of a matrix in which some hidden units are drawn anew (https://arxiv.org/abs/2502.19261).

    W' = W outside S, N(mean(W_S), std(W_S)^2) within: S, `units` (int64), are indices of the hidden dim `dim` (0 for
    gate and up [F, D], 1 for down [D, F]), W_S what is replaced. As the paper describes it, an expert has one S for its
    three matrices; its code draws another for each.
    """
    if len(units) == 0:
        return matrix.clone()
    dropped = matrix.index_select(dim, units)
    fresh = normal(dropped.shape, dropped.std(correction=0).item(), source) + dropped.mean()
    return matrix.index_copy(dim, units, fresh)
