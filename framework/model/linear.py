"""A matrix without a default initialisation, computed in the dtype of its input."""

import torch.nn.functional as F
from torch import Tensor, nn

from framework.parametrization.roles import Declaration, Init, Role, add_parameter, constant


def all_of(x: Tensor) -> Tensor:
    """What a block uses of something that other ranks hold too: on one rank, all of it."""
    return x


class Linear(nn.Module):
    """y = multiplier * x W^T (+ b): `weight` float32 [d_out, d_in] of the given role, `bias` float32 [d_out], zero at
    first. multiplier: 1, unless the parametrization scales the product.

    writes_residual: the output is added to the residual stream. fan_in: the width that the paper's init counts, where
    it is not d_in. init: fills the weight; None: the recipe's init rule does.
    """

    def __init__(
        self, d_in: int, d_out: int, role: Role, bias: bool = False, writes_residual: bool = False,
        fan_in: int | None = None, init: Init | None = None,
    ) -> None:
        super().__init__()
        self.multiplier = 1.0
        declaration = Declaration(role, fan_in or d_in, writes_residual=writes_residual, init=init)
        add_parameter(self, "weight", (d_out, d_in), declaration)
        if bias:
            add_parameter(self, "bias", (d_out,), Declaration(Role.BIAS, init=constant(0.0)))
        else:
            self.bias = None

    def forward(self, x: Tensor) -> Tensor:
        """x: any float dtype [..., d_in] -> [..., d_out] in the same dtype."""
        bias = None if self.bias is None else self.bias.to(x.dtype)
        if self.multiplier == 1.0:
            return F.linear(x, self.weight.to(x.dtype), bias)
        y = F.linear(x, self.weight.to(x.dtype)) * self.multiplier
        return y if bias is None else y + bias
