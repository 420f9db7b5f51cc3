"""Where a recipe's arithmetic lies: the count of `framework.recipe.flops`, by part of the model."""

from __future__ import annotations

from typing import TYPE_CHECKING

from framework.recipe.flops import NOT_MULTIPLIED, mixing_flops
from framework.recipe.parameters import family_of, parameters

if TYPE_CHECKING:
    from framework.recipe import Architecture

MATRICES = {"attention": "attention", "ffn": "ffn", "expert": "experts", "shared_expert": "shared experts",
            "ssm": "ssm"}
SINGLE = {"router": "router", "shared_expert_router": "router", "ssm_conv": "convolution", "unembedding": "head"}
MIXING = {"attention": "attention scores", "mamba1": "scan", "mamba2": "scan"}
"""What mixes tokens, by kind of sublayer: q.k with the weighted sum of v, and an SSM's recurrence."""


def flops_by_part(architecture: Architecture, seq_len: int, rows_per_choice: float = 1.0) -> dict[str, float]:
    """FLOPs of forward and backward per token, by part; only parts that the model has.

    rows_per_choice: rows that experts computed, over tokens * top_k: below 1 where rows were dropped, above where
    experts that choose tokens take more. With 1 the sum is `flops_per_token` of `framework.recipe.sizes`.
    """
    model, found = architecture.model, {}
    for row in parameters(architecture):
        if len(row.shape) > 1 and row.role not in NOT_MULTIPLIED:
            part = SINGLE.get(row.role) or MATRICES[family_of(row.role)]
            found[part] = found.get(part, 0) + 3 * 2 * row.active_size
    if model.tie_embeddings:
        found["head"] = 3 * 2 * model.vocab_size * model.d_model
    for sublayer in architecture.sublayers():
        if sublayer.kind in MIXING:
            part = MIXING[sublayer.kind]
            found[part] = found.get(part, 0) + 3 * mixing_flops(sublayer, model.d_model, seq_len)
    if "experts" in found:
        found["experts"] *= rows_per_choice
    return found
