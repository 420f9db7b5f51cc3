"""Factors on activations and products that a target has no place for, folded into weights.

A factor on what a matrix gives is one on the matrix. Powers of two are folded exactly, others round each weight once.
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

from framework.convert.table import our_tensors
from framework.parametrization import widths

if TYPE_CHECKING:
    from framework.recipe import Loaded

WRITERS = ("block.out.weight", "block.down.weight", "block.experts.down", "block.shared.down.weight")
"""What adds to the residual stream, and is linear to its end."""


def factors(loaded: Loaded, holds_multipliers: bool) -> dict[str, float]:
    """By name of a tensor, what it is multiplied by; only those that change.

    holds_multipliers: the target has those of the recipe's multipliers section itself, so that only the
    parametrization's are left. Expects one sublayer under each residual.
    """
    names = our_tensors(loaded.architecture)
    found: dict[str, float] = defaultdict(lambda: 1.0)
    rules = widths(loaded.recipe, loaded.architecture)
    for name, rule in rules.rules.items():
        if name in names and name != "unembedding.weight":
            found[name] *= rule.multiplier
    logits = rules.rule("unembedding.weight").multiplier
    if not holds_multipliers:
        logits *= _own(loaded, names, found)
    for index, layer in enumerate(loaded.architecture.layers):
        sublayer, = layer.branches
        if sublayer.kind != "attention":
            continue
        scale = loaded.architecture.model.multipliers.attention
        factor = rules.attention.get(sublayer.letter, 1.0) if scale is None else (
            1.0 if holds_multipliers else scale * sublayer.settings.head_dim**0.5)
        normed = sublayer.settings.qk_norm != "none"
        for name in ("q_norm.weight",) if normed else ("q.weight", "q.bias"):
            if (name := f"layers.{index}.block.{name}") in names:
                found[name] *= factor
    if loaded.architecture.model.tie_embeddings:
        # One matrix looks tokens up and makes the logits; the last norm alone scales only these.
        found["final_norm.weight"] *= logits
    else:
        found["unembedding.weight"] *= logits
    return {name: factor for name, factor in found.items() if factor != 1.0}


def _own(loaded: Loaded, names: dict[str, tuple[int, ...]], found: dict[str, float]) -> float:
    """Fold the multipliers section's factors on embedding and residual stream; returns what is left for the logits."""
    own, tied = loaded.architecture.model.multipliers, loaded.architecture.model.tie_embeddings
    found["embedding.weight"] *= own.embedding
    for name in names:
        if name.endswith(WRITERS):
            found[name] *= own.residual
    return own.logits / own.embedding if tied else own.logits
