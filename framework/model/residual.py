"""Pre-norm residual layers: one sublayer, or several side by side."""

from typing import Any

import torch
from torch import Tensor, nn

from framework.model.context import Context


class Branch(nn.Module):
    """block(norm(x))."""

    def __init__(self, norm: nn.Module, block: nn.Module) -> None:
        super().__init__()
        self.norm = norm
        self.block = block

    def forward(self, x_BSD: Tensor, context: Context, cache: Any = None) -> Tensor:
        return self.block(self.norm(x_BSD), context, cache)

    def new_cache(self, batch_size: int, max_len: int, device: torch.device, dtype: torch.dtype) -> Any:
        return self.block.new_cache(batch_size, max_len, device, dtype)


class Residual(Branch):
    """x + multiplier * block(norm(x))."""

    def __init__(self, norm: nn.Module, block: nn.Module, multiplier: float) -> None:
        super().__init__(norm, block)
        self.multiplier = multiplier

    def forward(self, x_BSD: Tensor, context: Context, cache: Any = None) -> Tensor:
        return _add(x_BSD, super().forward(x_BSD, context, cache), self.multiplier)


class ParallelResidual(nn.Module):
    """x + multiplier * sum of block_j(norm_j(x))."""

    def __init__(self, branches: list[Branch], multiplier: float) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)
        self.multiplier = multiplier

    def forward(self, x_BSD: Tensor, context: Context, cache: list | None = None) -> Tensor:
        caches = [None] * len(self.branches) if cache is None else cache
        outputs = [branch(x_BSD, context, own) for branch, own in zip(self.branches, caches, strict=True)]
        return _add(x_BSD, sum(outputs[1:], outputs[0]), self.multiplier)

    def new_cache(self, batch_size: int, max_len: int, device: torch.device, dtype: torch.dtype) -> list:
        return [branch.new_cache(batch_size, max_len, device, dtype) for branch in self.branches]


def _add(x_BSD: Tensor, y_BSD: Tensor, multiplier: float) -> Tensor:
    return x_BSD + y_BSD if multiplier == 1.0 else x_BSD + y_BSD * multiplier
