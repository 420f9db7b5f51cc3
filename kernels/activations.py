"""Elementwise activations, differentiable, and their derivatives for functions that write out their own backward.

`swiglu` names silu here: the factor beside it is the caller's.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class Activation(NamedTuple):
    """forward(x) is the activation; backward(grad_output, x) is grad_output times its derivative at x."""

    forward: Callable[[Tensor], Tensor]
    backward: Callable[[Tensor, Tensor], Tensor]


def _squared_relu(x: Tensor) -> Tensor:
    return F.relu(x).square()


def _squared_relu_backward(grad: Tensor, x: Tensor) -> Tensor:
    return F.relu(x).mul_(grad).mul_(2)


def _relu_backward(grad: Tensor, x: Tensor) -> Tensor:
    return torch.ops.aten.threshold_backward(grad, x, 0)


ACTIVATIONS: dict[str, Activation] = {
    "swiglu": Activation(F.silu, torch.ops.aten.silu_backward),
    "gelu": Activation(F.gelu, torch.ops.aten.gelu_backward),
    "relu": Activation(F.relu, _relu_backward),
    "relu2": Activation(_squared_relu, _squared_relu_backward),
}
