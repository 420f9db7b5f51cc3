"""Noise on experts, so that copies are not alike."""

from torch import Generator, Tensor

from framework.surgery.randomness import normal


def add_noise(matrix: Tensor, units: Tensor, dim: int, std: float, source: Generator) -> Tensor:
    """A copy of a matrix with N(0, std^2) added to some hidden units: the baseline of https://arxiv.org/abs/2502.19261,
    which adds std 0.02 to half of the indices.

    units: int64 indices of the hidden dim `dim` (0 for gate and up [F, D], 1 for down [D, F]).
    """
    drawn = normal(matrix.index_select(dim, units).shape, std, source)
    return matrix.index_add(dim, units, drawn)
