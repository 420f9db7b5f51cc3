"""Rotary positions of queries and keys.

B batch, S sequence, H heads, P head width, N rotated pairs of a head.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from framework.bench.kernels.case import Arguments, Case, Work
from kernels.rotary import rotate_halves


@dataclass(frozen=True)
class Heads:
    batch: int
    seq_len: int
    num_heads: int
    width: int
    num_pairs: int

    def __str__(self) -> str:
        rotated = "" if 2 * self.num_pairs == self.width else f" N={self.num_pairs}"
        return f"B={self.batch} S={self.seq_len} H={self.num_heads} P={self.width}{rotated}"


HEADS = (Heads(4, 4096, 16, 64, 32), Heads(2, 8192, 32, 128, 64))
PART = Heads(4, 4096, 16, 128, 32)


def cases() -> list[Case]:
    return [*(rotary_case(heads) for heads in HEADS), rotary_case(PART, is_timed=False)]


def rotary_case(heads: Heads, is_timed: bool = True) -> Case:
    """x and y, 2 bytes a number, in either pass; cosines and sines are few."""
    def arguments(device: torch.device, num_tokens: int | None) -> Arguments:
        batch, seq_len = (1, num_tokens) if num_tokens else (heads.batch, heads.seq_len)
        angle_1S1N = torch.randn(1, seq_len, 1, heads.num_pairs, device=device)
        x_BSHP = torch.randn(batch, seq_len, heads.num_heads, heads.width, device=device, dtype=torch.bfloat16)
        return x_BSHP.requires_grad_(), angle_1S1N.cos(), angle_1S1N.sin()

    num_bytes = 4 * heads.batch * heads.seq_len * heads.num_heads * heads.width
    return Case("rotate_halves", str(heads), arguments, rotate_halves, (Work("forward", 0, num_bytes),),
                (Work("backward", 0, num_bytes),), {"PyTorch's operations": _composed}, timed=is_timed)


def _composed(x_BSHP: Tensor, cos_BS1N: Tensor, sin_BS1N: Tensor) -> Tensor:
    first, second = x_BSHP.chunk(2, -1)
    cos_BS1P, sin_BS1P = (torch.cat([each, each], -1).to(x_BSHP.dtype) for each in (cos_BS1N, sin_BS1N))
    return x_BSHP * cos_BS1P + torch.cat([-second, first], -1) * sin_BS1P
