"""From a recipe's architecture to a language model."""

from typing import TYPE_CHECKING

from torch import nn

from framework.model.attention import Attention
from framework.model.embedding import Embedding, Unembedding
from framework.model.ffn import FFN
from framework.model.language_model import LanguageModel
from framework.model.mamba1 import Mamba1
from framework.model.mamba2 import Mamba2
from framework.model.moe import MixtureOfExperts
from framework.model.norm import make_norm
from framework.model.residual import Branch, ParallelResidual, Residual

if TYPE_CHECKING:
    from framework.recipe.architecture import Architecture, Layer, Sublayer
    from framework.recipe.schema import Model


def build_language_model(architecture: "Architecture") -> LanguageModel:
    """The model of an architecture, its parameters uninitialised, float32, on torch's current default device.

    Under `torch.device("meta")` nothing is allocated; `to_empty` and `initialize` then complete it.
    A tied matrix counts as the unembedding in the init rule, since it sums over d_model there.
    """
    model = architecture.model
    layers = [_layer(layer, model) for layer in architecture.layers]
    fan_in = model.d_model if model.tie_embeddings else 1
    return LanguageModel(
        Embedding(model.vocab_size, model.d_model, model.multipliers.embedding, fan_in),
        layers,
        make_norm(model.norm, model.d_model, model.norm_eps),
        Unembedding(model.vocab_size, model.d_model, model.multipliers.logits),
        tied=model.tie_embeddings,
        num_residual_branches=sum(len(layer.branches) for layer in architecture.layers),
    )


def _layer(layer: "Layer", model: "Model") -> nn.Module:
    multiplier = model.multipliers.residual
    parts = [(make_norm(model.norm, model.d_model, model.norm_eps), _block(sub, model)) for sub in layer.branches]
    if len(parts) == 1:
        return Residual(*parts[0], multiplier)
    return ParallelResidual([Branch(*part) for part in parts], multiplier)


def _block(sublayer: "Sublayer", model: "Model") -> nn.Module:
    settings = sublayer.settings
    if sublayer.kind == "attention":
        return Attention(model.d_model, settings, model.norm_eps, model.multipliers.attention)
    if sublayer.kind == "ffn":
        return FFN(model.d_model, settings.d_ff, settings.activation)
    block = {"moe": MixtureOfExperts, "mamba1": Mamba1, "mamba2": Mamba2}[sublayer.kind]
    return block(model.d_model, settings, model.norm_eps)
