"""AdamW over groups of parameters that share learning-rate factors and weight decay."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from framework.optim.schedule import learning_rate
from framework.parametrization import STANDARD, Widths, is_decayed, learning_rate_factors
from framework.parametrization.roles import declarations

if TYPE_CHECKING:
    from framework.recipe.schema import Optim


class ShardedAdamW(torch.optim.AdamW):
    """PyTorch's fused AdamW over the local shards of DTensors, which are all that an update needs.

    Through DTensors themselves each group of parameters costs the host milliseconds, in which a GPU has nothing to do.
    """

    def step(self, divisor: Tensor | None = None, where: Tensor | None = None) -> None:
        """Update by the gradients over `divisor` (a float32 scalar on the device; None: 1), or leave everything as it
        is where the boolean `where` is false; in one pass, and without waiting for either number."""
        # The names by which `torch.amp.GradScaler` tells a fused optimizer the same.
        self.grad_scale, self.found_inf = divisor, None if where is None else (~where).float()
        super().step()

    def _init_group(self, group: dict[str, Any], *lists: list[Tensor]) -> bool:
        is_complex = super()._init_group(group, *lists)
        for tensors in lists:
            tensors[:] = [each.to_local() if isinstance(each, DTensor) else each for each in tensors]
        return is_complex


def build_adamw(
    model: nn.Module, optim: Optim, widths: Widths = STANDARD, with_state: bool = True
) -> torch.optim.AdamW:
    """Fused AdamW with one group for each (start factor, end factor, weight decay) that occurs.

    A parameter's factors are those of its width times those of its role. The state of every parameter exists from the
    start, so that checkpoints always hold the same keys. `with_state`: False where another holds it, and splits
    PyTorch's own optimizer; else a ShardedAdamW.
    """
    factors = learning_rate_factors(optim.relative_lr)
    parameters = defaultdict(list)
    for full_name, module, name, declaration in declarations(model):
        width, (start, end) = widths.rule(full_name), factors[declaration.role]
        decay = optim.weight_decay * width.decay_factor if is_decayed(declaration.role) else 0.0
        factors_of_group = start * width.lr_factor, end * width.lr_factor
        parameters[*factors_of_group, decay, optim.eps * width.eps_factor].append(module.get_parameter(name))
    groups = [{"params": members, "start": start, "end": end, "weight_decay": decay, "eps": eps}
              for (start, end, decay, eps), members in parameters.items()]
    kind = ShardedAdamW if with_state else torch.optim.AdamW
    optimizer = kind(groups, lr=optim.lr, betas=tuple(optim.betas), fused=True)
    if with_state:
        _create_state(optimizer)
    return optimizer


def set_learning_rates(optimizer: torch.optim.AdamW, optim: Optim, step: int, num_steps: int) -> float:
    """Give every group its rate at `step` (1..num_steps); returns the rate of a group with neutral factors."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate(optim, step, num_steps, group["start"], group["end"])
    return learning_rate(optim, step, num_steps)


def _create_state(optimizer: torch.optim.AdamW) -> None:
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            optimizer.state[parameter] = {
                "step": torch.zeros((), dtype=torch.float32, device=parameter.device),
                "exp_avg": torch.zeros_like(parameter, memory_format=torch.preserve_format),
                "exp_avg_sq": torch.zeros_like(parameter, memory_format=torch.preserve_format),
            }
