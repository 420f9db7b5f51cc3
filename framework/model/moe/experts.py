"""The experts of one layer, as stacks of matrices."""

from torch import Tensor, nn

from framework.model.moe.assignment import Assignment
from framework.parametrization.roles import Declaration, Role, add_parameter
from kernels import expert_ffn


class Experts(nn.Module):
    """`gate` [E, F, D] (swiglu only), `up` [E, F, D], `down` [E, D, F], float32; no biases.

    The init rule sees each expert as a feed-forward block of its own: `down` sums over F = d_expert. multiplier: of the
    products with `gate` and `up`; 1, unless the parametrization scales them.
    """

    def __init__(self, d_model: int, num_experts: int, d_expert: int, activation: str) -> None:
        super().__init__()
        self.multiplier = 1.0
        self.activation = activation
        wide, narrow = (num_experts, d_expert, d_model), (num_experts, d_model, d_expert)
        if activation == "swiglu":
            add_parameter(self, "gate", wide, Declaration(Role.EXPERT_GATE, d_model, stacked=True))
        else:
            self.gate = None
        add_parameter(self, "up", wide, Declaration(Role.EXPERT_UP, d_model, stacked=True))
        add_parameter(self, "down", narrow, Declaration(Role.EXPERT_DOWN, d_expert, stacked=True, writes_residual=True))

    def forward(self, x_TD: Tensor, assignment: Assignment) -> Tensor:
        """y_TD in the dtype of x: per token, the sum of its experts' outputs times their gates."""
        if self.multiplier != 1.0:
            x_TD = x_TD * self.multiplier
        gate_EFD = None if self.gate is None else self.gate.to(x_TD.dtype)
        return expert_ffn(
            x_TD, assignment.token_M, assignment.gate_M, assignment.counts_E,
            gate_EFD, self.up.to(x_TD.dtype), self.down.to(x_TD.dtype), self.activation, assignment.rows,
        )
