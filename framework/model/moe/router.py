"""Logits over experts.

B batch, S sequence, D model width, E experts.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from framework.parametrization.roles import Declaration, Role, add_parameter


class Router(nn.Module):
    """multiplier * x weight^T, `weight` [E, D], in float32 whatever the activations are.

    multiplier: 1, unless the parametrization scales the logits.

    `selection_bias_E` (a float32 buffer, None unless balancing is loss-free): added to scores when experts are
    selected, never to gates. It stands here so that checkpoints hold it.
    """

    keep_float32 = True

    def __init__(self, d_model: int, num_experts: int, selection_bias: bool) -> None:
        super().__init__()
        self.multiplier = 1.0
        add_parameter(self, "weight", (num_experts, d_model), Declaration(Role.ROUTER, d_model))
        bias_E = torch.zeros(num_experts, dtype=torch.float32) if selection_bias else None
        self.register_buffer("selection_bias_E", bias_E)

    def forward(self, x_BSD: Tensor) -> Tensor:
        """x: any float dtype -> logits [B, S, E] in float32 (float64 where x is)."""
        dtype = torch.promote_types(x_BSD.dtype, torch.float32)
        logits_BSE = F.linear(x_BSD.to(dtype), self.weight.to(dtype))
        return logits_BSE if self.multiplier == 1.0 else logits_BSE * self.multiplier
