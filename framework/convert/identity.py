"""An attention layer that adds nothing, for models that have no attention.

transformers 5 keeps the length of a text with its attention layers, so that a hybrid without one cannot generate with a
cache. All weights of the layer are zero, so the residual stream goes through it bit by bit.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from framework.errors import UserError
from framework.recipe.architecture import Layer, Sublayer
from framework.recipe.schema import Attention

if TYPE_CHECKING:
    from framework.convert.target import Target
    from framework.recipe import Architecture

HEAD_DIM = 64
"""Width of a head where it divides the model's: the one head of keys and values is all that a cache holds."""


def with_identity_layer(architecture: Architecture, target: Target) -> Architecture:
    """The architecture with one more layer of the target at its end, attention and what follows it there.

    Raises UserError where the model generates without it, or the target's config has no words for such an end.
    """
    if target.without_attention or any(sublayer.kind == "attention" for sublayer in architecture.sublayers()):
        raise UserError(f"--identity-attention: this {target.model_type} generates as it is; allowed: with models of "
                        "jamba, granitemoehybrid and nemotron_h that have no attention")
    d_model = architecture.model.d_model
    num_heads = d_model // HEAD_DIM if d_model % HEAD_DIM == 0 else 1
    attention = Sublayer("*", "attention", Attention(
        num_heads=num_heads, num_kv_heads=1, head_dim=d_model // num_heads, rope=False))
    followers = [()] if target.layers.per_layer == 1 else dict.fromkeys(
        (sublayer.letter, ) for sublayer in architecture.sublayers() if sublayer.kind in target.layers.kinds[1])
    by_letter = {sublayer.letter: sublayer for sublayer in architecture.sublayers()}
    for letters in followers:
        added = [attention, *(by_letter[letter] for letter in letters)]
        longer = dataclasses.replace(
            architecture, layers=(*architecture.layers, *(Layer((sublayer,)) for sublayer in added)))
        if not target.mismatches(longer):
            return longer
    raise UserError(f"--identity-attention: no layer can follow the last one of this {target.model_type}")
