"""From a recipe's architecture to a language model."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from torch import nn

from framework.model.attention import Attention
from framework.model.embedding import Embedding, Unembedding
from framework.model.ffn import FFN
from framework.model.language_model import LanguageModel
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
    return BLOCKS[sublayer.kind](model, sublayer.settings)


def _attention(model: "Model", settings) -> nn.Module:
    return Attention(model.d_model, settings, model.norm_eps, model.multipliers.attention)


def _ffn(model: "Model", settings) -> nn.Module:
    return FFN(model.d_model, settings.d_ff, settings.activation)


def _moe(model: "Model", settings) -> nn.Module:
    from framework.model.moe import MixtureOfExperts

    return MixtureOfExperts(model.d_model, settings, model.norm_eps)


def _mamba1(model: "Model", settings) -> nn.Module:
    from framework.model.mamba1 import Mamba1

    return Mamba1(model.d_model, settings, model.norm_eps)


def _mamba2(model: "Model", settings) -> nn.Module:
    from framework.model.mamba2 import Mamba2

    return Mamba2(model.d_model, settings, model.norm_eps)


BLOCKS: dict[str, Callable[["Model", object], nn.Module]] = {
    "attention": _attention, "ffn": _ffn, "moe": _moe, "mamba1": _mamba1, "mamba2": _mamba2,
}
