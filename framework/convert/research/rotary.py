"""Buffers of rotary positions, where a checkpoint holds them: they tell whether the recipe's positions are right."""

from __future__ import annotations

import torch

from framework.convert.fields import settings_of
from framework.convert.our_weights import Given
from framework.convert.research.layout import Parts
from framework.errors import UserError
from framework.model.rope import frequencies
from framework.recipe import Architecture

BUFFERS = (".rope.cos", ".rope.sin")
MOST_POSITIONS, TOLERANCE = 2048, 1e-2
"""Angles that were made in float32, and maybe stored in bfloat16, are that far off at so many positions at most."""


def require_same_positions(given: Given, parts: Parts, architecture: Architecture) -> None:
    """Compare the first block's buffers [L, P] with the recipe's cosines and sines, two equal halves each.

    Raises UserError where they differ. Without buffers there is nothing to compare.
    """
    settings = settings_of(architecture, "attention")
    block = next((block for block in parts.blocks if block.kind == "attention"), None)
    if settings is None or block is None or not settings.rope:
        return
    for name, function in (("rope.cos", torch.cos), ("rope.sin", torch.sin)):
        if block.body + name not in given.shapes:
            continue
        stored = given.tensor(block.body + name)[:MOST_POSITIONS]
        angles = torch.arange(len(stored)).double()[:, None] * frequencies(settings, torch.device("cpu"))
        expected = function(angles).float().repeat(1, 2)
        if stored.shape != expected.shape or not bool(((stored - expected).abs() <= TOLERANCE).all()):
            raise UserError(f"{block.body}{name} is not that of model.attention.rope_base={settings.rope_base:g} and "
                            "the rope_scaling given; allowed: those that the model was trained with")
