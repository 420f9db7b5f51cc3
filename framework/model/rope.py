"""Rotary position embeddings (https://arxiv.org/abs/2104.09864), the two halves of a head paired as Llama does.

B batch, S sequence, H heads, P head width, N rotated pairs of a head.
"""

import math

import torch
from torch import Tensor

from kernels import rotate_halves


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


def rotate(x_BSHP: Tensor, position_BS: Tensor, frequency_N: Tensor) -> Tensor:
    """Rotate the first 2N features of every head by position * frequency, feature n together with feature N + n.

    x_BSHP: any float dtype; position_BS: int64, with B either x's or 1; frequency_N: float64. The rotation happens in
    float32 at least and the result has x's dtype.
    """
    dtype = torch.promote_types(x_BSHP.dtype, torch.float32)
    angle_BS1N = position_BS[:, :, None, None] * frequency_N
    cos_BS1N, sin_BS1N = angle_BS1N.cos().to(dtype), angle_BS1N.sin().to(dtype)
    return rotate_halves(x_BSHP.to(dtype), cos_BS1N, sin_BS1N).to(x_BSHP.dtype)
