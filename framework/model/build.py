"""From a recipe's architecture to a language model."""

from collections.abc import Mapping
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
    from framework.parametrization.widths import Widths
    from framework.recipe.architecture import Architecture, Layer, Sublayer
    from framework.recipe.schema import Model


def build_language_model(architecture: "Architecture", widths: "Widths | None" = None) -> LanguageModel:
    """The model of an architecture, its parameters uninitialised, float32, on torch's current default device.

    widths: factors on products where the parametrization has them, from `framework.parametrization.widths`.
    Under `torch.device("meta")` nothing is allocated; `to_empty` and `initialize` then complete it.
    A tied matrix counts as the unembedding in the init rule, since it sums over d_model there.
    """
    model = architecture.model
    attention = {} if widths is None else widths.attention
    layers = [_layer(layer, model, attention) for layer in architecture.layers]
    fan_in = model.d_model if model.tie_embeddings else 1
    built = LanguageModel(
        Embedding(model.vocab_size, model.d_model, model.multipliers.embedding, fan_in),
        layers,
        make_norm(model.norm, model.d_model, model.norm_eps),
        Unembedding(model.vocab_size, model.d_model, model.multipliers.logits),
        tied=model.tie_embeddings,
        num_residual_branches=sum(len(layer.branches) for layer in architecture.layers),
    )
    if widths is not None:
        _multiply_products(built, widths)
    return built


def _multiply_products(model: LanguageModel, widths: "Widths") -> None:
    """Gate and up of experts have one factor on their common input."""
    for name, rule in widths.rules.items():
        module, _, matrix = name.rpartition(".")
        if rule.multiplier != 1.0 and matrix != "gate":
            model.get_submodule(module).multiplier *= rule.multiplier


def _layer(layer: "Layer", model: "Model", attention: Mapping[str, float]) -> nn.Module:
    multiplier = model.multipliers.residual
    parts = [(make_norm(model.norm, model.d_model, model.norm_eps), _block(sub, model, attention))
             for sub in layer.branches]
    if len(parts) == 1:
        return Residual(*parts[0], multiplier)
    return ParallelResidual([Branch(*part) for part in parts], multiplier)


def _block(sublayer: "Sublayer", model: "Model", attention: Mapping[str, float]) -> nn.Module:
    settings = sublayer.settings
    if sublayer.kind == "attention":
        scale = model.multipliers.attention or settings.head_dim**-0.5 * attention.get(sublayer.letter, 1.0)
        return Attention(model.d_model, settings, model.norm_eps, scale)
    if sublayer.kind == "ffn":
        return FFN(model.d_model, settings.d_ff, settings.activation)
    block = {"moe": MixtureOfExperts, "mamba1": Mamba1, "mamba2": Mamba2}[sublayer.kind]
    return block(model.d_model, settings, model.norm_eps)
