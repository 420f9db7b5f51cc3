"""Random numbers that depend on the seed and on what they are for alone, so that every layout draws the same."""

import hashlib
import math

import torch
from torch import Tensor

from framework.parametrization.init import truncated_normal_


def generator(seed: int, *purpose: str | int) -> torch.Generator:
    """Of one purpose: a parameter's name, an expert's number, what is drawn."""
    digest = hashlib.sha256(":".join(map(str, (seed, *purpose))).encode()).digest()
    # PyTorch's CPU generator looks at 32 bits of its seed.
    return torch.Generator("cpu").manual_seed(int.from_bytes(digest[:4], "big"))


def normal(shape: torch.Size | tuple[int, ...], std: float, source: torch.Generator) -> Tensor:
    """float32 of mean 0, the same on every machine (`torch.randn` is not: it differs between instruction sets)."""
    drawn = torch.empty(shape, dtype=torch.float32)
    truncated_normal_(drawn, std, math.inf, source)
    return drawn


def choose_units(num_units: int, share: float, source: torch.Generator) -> Tensor:
    """round(share * num_units) of the hidden units, ascending, each set as likely: int64."""
    order = torch.rand(num_units, dtype=torch.float64, generator=source).argsort()
    return order[: round(share * num_units)].sort().values
