"""Rotary position embeddings (https://arxiv.org/abs/2104.09864), the two halves of a head paired as Llama does.

B batch, S sequence, N rotated pairs of a head.
"""

import math

import torch
from torch import Tensor


def frequencies(settings, device: torch.device) -> Tensor:
    """Angle per position of each rotated pair, in radians: float64 [N], N = rope_fraction * head_dim / 2.

    base^(-2n / 2N), after Llama 3's scaling if `settings.rope_scaling` is given. Computed where it is used, never
    stored: a model built on the meta device then has nothing to restore.
    """
    rotated = round(settings.head_dim * settings.rope_fraction)
    exponent_N = torch.arange(0, rotated, 2, dtype=torch.float64, device=device) / rotated
    frequency_N = settings.rope_base ** -exponent_N
    return frequency_N if settings.rope_scaling is None else _llama3(frequency_N, settings.rope_scaling)


def _llama3(frequency_N: Tensor, scaling) -> Tensor:
    """Divide slow frequencies by the factor, keep fast ones, and blend linearly between (Llama 3.1's released rule)."""
    turns_N = scaling.original_seq_len * frequency_N / (2 * math.pi)
    low, high = scaling.low_frequency_factor, scaling.high_frequency_factor
    kept_N = ((turns_N - low) / (high - low)).clamp(0, 1)
    return frequency_N * (kept_N + (1 - kept_N) / scaling.factor)


def cosine_and_sine(position_BS: Tensor, frequency_N: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Of position * frequency, for `rotate_halves`: [B, S, 1, N] each, in float32 or a wider dtype of what is rotated.

    position_BS: int64; frequency_N: float64, in which the angles are computed.
    """
    angle_BS1N = position_BS[:, :, None, None] * frequency_N
    wide = torch.promote_types(dtype, torch.float32)
    return angle_BS1N.cos().to(wide), angle_BS1N.sin().to(wide)
