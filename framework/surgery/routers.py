"""How routers of an upcycled model start. E experts, D model width."""

import math

import torch
from torch import Tensor

UNIFORM_STD = 0.02


def virtual_groups(router_ED: Tensor, granularity: int) -> Tensor:
    """Each of the first E / G rows G times in a row, so that the G shards of a replica share one
    (https://arxiv.org/abs/2410.07524, "virtual group initialization").

    A token's top G experts are then one of each shard: the shards of one replica have equal logits.
    """
    return router_ED[: len(router_ED) // granularity].repeat_interleave(granularity, dim=0)


def uniform(shape: torch.Size | tuple[int, ...], source: torch.Generator) -> Tensor:
    """(U(0, 1) - 1/2) * 0.02 sqrt(12), so of std 0.02: float32 (the code of https://arxiv.org/abs/2502.19261; what it
    subtracts is called a mean, and taken for the distribution's here)."""
    drawn = torch.rand(shape, dtype=torch.float64, generator=source) - 0.5
    return (drawn * (UNIFORM_STD * math.sqrt(12))).float()
