"""Dense feed-forward block; shared experts are one too, with their own roles."""

from typing import NamedTuple

from torch import Tensor, nn

from framework.model.context import Context
from framework.model.linear import Linear
from framework.parametrization.roles import Role
from kernels.activations import ACTIVATIONS


class FFNRoles(NamedTuple):
    """The roles of a feed-forward block's three matrices."""

    gate: Role = Role.FFN_GATE
    up: Role = Role.FFN_UP
    down: Role = Role.FFN_DOWN


class FFN(nn.Module):
    """down(activation(up(x))), or down(silu(gate(x)) * up(x)) for swiglu (https://arxiv.org/abs/2002.05202, Eq. 6).

    activation: swiglu, gelu (the exact x * Phi(x)), relu or relu2 (its square, https://arxiv.org/abs/2109.08668).
    No biases. `gate` exists only for swiglu.
    """

    def __init__(self, d_model: int, d_ff: int, activation: str, roles: FFNRoles | None = None) -> None:
        super().__init__()
        roles = roles or FFNRoles()
        self.activation = ACTIVATIONS[activation].forward
        self.gate = Linear(d_model, d_ff, roles.gate) if activation == "swiglu" else None
        self.up = Linear(d_model, d_ff, roles.up)
        self.down = Linear(d_ff, d_model, roles.down, writes_residual=True)

    def forward(self, x: Tensor, context: Context | None = None, cache: None = None) -> Tensor:
        """x: any float dtype [..., D] -> the same shape and dtype. Tokens do not meet: no need of context or cache."""
        up = self.up(x)
        hidden = self.activation(up) if self.gate is None else self.activation(self.gate(x)) * up
        return self.down(hidden)

    def new_cache(self, *_) -> None:
        """Nothing is remembered between tokens."""
