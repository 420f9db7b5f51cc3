"""What a parameter of the target is made of: the entries of a plan.

F hidden units of the dense block, D model width. A matrix is gate or up [F, D], whose hidden dim is 0, or down [D, F],
whose hidden dim is 1.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from framework.surgery.copying import take_units
from framework.surgery.drop import redraw_units
from framework.surgery.noise import add_noise
from framework.surgery.randomness import choose_units, generator
from framework.surgery.split import Split


@dataclass(frozen=True)
class Copied:
    """The dense run's parameter, times a factor. moment_factor: on its gradient, as in `Made`."""

    source: str
    factor: float = 1.0
    moment_factor: float = 1.0


@dataclass(frozen=True)
class Made:
    """Something of a dense block's matrix `source`, whose hidden dim is `dim`, times a factor.

    moment_factor: c, what the expected gradient of the made weights is of the dense ones' (derived: a weight times a
    has a gradient over a, and each of R replicas gets a share 1 / R of it, of the tokens or of their gates). AdamW's
    first moment is linear in gradients and goes over as c m, the second is quadratic and goes over as c^2 v, so that
    its step m / sqrt(v) is the dense run's.
    """

    source: str
    dim: int
    factor: float
    moment_factor: float

    stacked = False

    def weight(self, matrix: Tensor, expert: int) -> Tensor:
        """One expert's whole matrix, from the dense block's."""
        raise NotImplementedError

    def moment(self, matrix: Tensor, expert: int, power: int) -> Tensor:
        """The same of a moment, which is of degree `power` in gradients."""
        raise NotImplementedError


@dataclass(frozen=True)
class SharedUnits(Made):
    """The hidden units of the shared experts, which are one matrix."""

    units: range

    def weight(self, matrix: Tensor, expert: int) -> Tensor:
        return take_units(matrix, self.units, self.dim) * self.factor

    def moment(self, matrix: Tensor, expert: int, power: int) -> Tensor:
        return take_units(matrix, self.units, self.dim) * self.moment_factor**power


@dataclass(frozen=True)
class ExpertStack(Made):
    """The routed experts' matrices, one made at a time. name: the parameter's. block: what its gate, up and down share.

    Randomness depends on the seed, the name or the block, and the expert's number alone.
    """

    split: Split
    name: str
    block: str
    seed: int
    drop_ratio: float = 0.0
    noise_std: float = 0.0
    noise_share: float = 0.0

    stacked = True

    def weight(self, matrix: Tensor, expert: int) -> Tensor:
        made = take_units(matrix, self.split.units(expert), self.dim) * self.factor
        if self.drop_ratio > 0:
            made = redraw_units(made, self._units("dropped", self.drop_ratio, expert), self.dim,
                                generator(self.seed, self.name, "drop", expert))
        if self.noise_std > 0:
            made = add_noise(made, self._units("noised", self.noise_share, expert), self.dim, self.noise_std,
                             generator(self.seed, self.name, "noise", expert))
        return made

    def moment(self, matrix: Tensor, expert: int, power: int) -> Tensor:
        """Of units that start anew it is zero: their gradients were those of other weights."""
        made = take_units(matrix, self.split.units(expert), self.dim) * self.moment_factor**power
        if self.drop_ratio > 0:
            made = made.index_fill(self.dim, self._units("dropped", self.drop_ratio, expert), 0.0)
        return made

    def _units(self, purpose: str, share: float, expert: int) -> Tensor:
        """One set for the three matrices of an expert."""
        return choose_units(self.split.d_expert, share, generator(self.seed, self.block, purpose, expert))


@dataclass(frozen=True)
class VirtualGroups:
    """A router of the recipe's rule, whose first rows stand for whole replicas."""

    granularity: int


@dataclass(frozen=True)
class Uniform:
    """A router that starts small and uniform."""

    name: str
    seed: int


@dataclass(frozen=True)
class Zeros:
    """The router of shared experts, whose sigmoid is then one half for every token."""


@dataclass(frozen=True)
class ByRecipe:
    """As the recipe's rule starts it, without anything of the dense run."""


Rule = Copied | Made | VirtualGroups | Uniform | Zeros | ByRecipe
