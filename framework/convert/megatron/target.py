"""Megatron-Core's two language models: what a recipe must be, and their tensors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from framework.convert.conditions import (
    NORMALISED,
    SIGMOID,
    SOFTMAX,
    Condition,
    alike,
    every,
    gates,
    gates_of,
    holds,
)
from framework.convert.fields import Config, Facts, settings_of
from framework.convert.layers import Layers
from framework.convert.megatron.arguments import LLAMA3, common, mamba_sizes
from framework.convert.megatron.tables import PREFIX, SPECS, tensors
from framework.convert.table import Piece, pieces
from framework.convert.target import Target
from framework.errors import UserError
from framework.recipe.errors import shorten

if TYPE_CHECKING:
    from framework.recipe import Architecture

MIXER_EPS = 1e-5
"""Of the norm in MambaMixer, whatever the model's is."""


class TransformerLayers(Layers):
    """Attention, then a dense block or a mixture of experts; which of both, each layer says."""

    def write(self, layers: list[str]) -> dict[str, Any]:
        written: dict[str, Any] = {"num_layers": len(layers)}
        if "*E" in layers:
            written["moe_layer_freq"] = [int(layer == "*E") for layer in layers] if "*-" in layers else 1
        return written


class StackLayers(Layers):
    """One sublayer a layer; the letters are ours."""

    def write(self, layers: list[str]) -> dict[str, Any]:
        return {"num_layers": len(layers), "hybrid_override_pattern": "".join(layers), "is_hybrid_model": True,
                "spec": ["megatron.core.models.mamba.mamba_layer_specs", "mamba_stack_spec"]}


@dataclass(frozen=True)
class MegatronTarget(Target):
    """kind: of tables.LAST_NORMS. spec: the layer specification whose names are used, of tables.SPECS."""

    kind: str = "gpt"
    spec: str = "te"

    def pieces(self, architecture: Architecture) -> list[Piece]:
        """Their tensors beside ours."""
        attention = settings_of(architecture, "attention")
        table = tensors(self.kind, self.spec, 1 if attention is None else attention.head_dim)
        return pieces(table, self.prefix, self.layers.per_layer, architecture)

    def stacked(self, architecture: Architecture) -> int | None:
        """How many layers Megatron-Core stacks in one tensor: all where they are alike, else None."""
        layers = self.layers.letters(architecture)
        return len(layers) if self.kind == "gpt" and len(set(layers)) == 1 else None

    def write_config(self, facts: Facts) -> dict[str, Any]:
        """The argument list."""
        written = super().write_config(facts)
        return {key: value for key, value in written.items() if key not in ("architectures", "model_type", "use_cache")}

    def read_config(self, config: Config, place: str = "common.pt") -> dict[str, Any]:
        """Dotted fields of the recipe's model section. Raises UserError with every argument that cannot be ours.

        The pattern is not among them: the tensors' names tell it.
        """
        fields = super().read_config({**config, "num_hidden_layers": 1}, place)
        return {path: value for path, value in fields.items() if path != "pattern"}


def _one_activation() -> tuple[Condition, ...]:
    def mismatch(architecture: Architecture) -> str | None:
        ffn, moe = (settings_of(architecture, section) for section in ("ffn", "moe"))
        if ffn is None or moe is None or ffn.activation == moe.activation:
            return None
        return (f"model.moe.activation is {shorten(moe.activation)} beside {shorten(ffn.activation)} of dense blocks "
                "(allowed: the same)")

    return (Condition("one activation", mismatch),)


def _llama3(_, attention) -> bool:
    scaling = attention.rope_scaling
    return scaling is None or all(getattr(scaling, name) == value for name, value in LLAMA3.items())


def _gates(_, moe) -> bool:
    kind = gates_of(moe)
    if kind == SIGMOID:
        return moe.normalize_top_k == (moe.top_k > 1)
    return kind != NORMALISED or moe.top_k > 1


def _no_norm_beside_layernorm(architecture: Architecture) -> str | None:
    attention = settings_of(architecture, "attention")
    if architecture.model.norm == "layernorm" and attention is not None and attention.qk_norm != "none":
        return "model.attention.qk_norm is 'head' beside model.norm 'layernorm' (allowed: both rmsnorm, or no qk_norm)"
    return None


SHARED_CONDITIONS = (
    *alike("attention"), *alike("ffn"), *alike("moe"), *alike("mamba2"), *_one_activation(),
    *gates(NORMALISED, SOFTMAX, SIGMOID),
    *holds("normalize_top_k", "model.moe.normalize_top_k does not fit top_k (allowed: softmax over all, or gates "
           "normalised where top_k is 2 or more; of a sigmoid normalised there and not where it is 1)", _gates, "moe"),
    *holds("selection bias", "model.moe.selection_bias_rate is not 0 (allowed: with router sigmoid)",
           lambda _, moe: moe.selection_bias_rate == 0 or gates_of(moe) == SIGMOID, "moe"),
    *every("ffn", activation=("swiglu", "gelu", "relu2")), *every("moe", activation=("swiglu", "gelu", "relu2")),
    *every("moe", output_norm=False), *every("attention", window=None),
    *holds("rope_base", "model.attention.rope_base is no whole number (allowed: a whole one)",
           lambda _, attention: float(attention.rope_base).is_integer(), "attention"),
    *holds("rope_scaling", f"model.attention.rope_scaling is another one (allowed: {LLAMA3}, any factor)", _llama3,
           "attention"),
    Condition("norms", _no_norm_beside_layernorm),
)


def target(kind: str, spec: str) -> MegatronTarget:
    """GPTModel or MambaModel with the names of one layer specification."""
    if spec not in SPECS:
        raise UserError(f"--spec {spec}: not known; allowed: {', '.join(SPECS)}")
    if kind == "gpt":
        return MegatronTarget(
            "gpt", "GPTModel", TransformerLayers((("attention",), ("ffn", "moe"))), kind=kind, spec=spec, prefix=PREFIX,
            conditions=(*SHARED_CONDITIONS, *every("attention", qk_norm=("none", "head"))), config=common(), tensors={},
        )
    return MegatronTarget(
        "hybrid", "MambaModel", StackLayers((("mamba2", "attention", "moe", "ffn"),)), kind=kind, spec=spec,
        prefix=PREFIX, config=(*common(), mamba_sizes()), tensors={}, conditions=(
            *SHARED_CONDITIONS, *every("attention", qk_norm="none", rope_scaling=None), *every("mamba2", d_conv=4),
            *holds("norm_eps", f"model.norm_eps is not that of their Mamba-2 blocks (allowed: {MIXER_EPS:g})",
                   lambda model, _: model.norm_eps == MIXER_EPS, "mamba2"),
        ),
    )


def choose(architecture: Architecture, spec: str) -> MegatronTarget:
    """GPTModel where it can be the recipe's model, else MambaModel. Raises UserError with what stands in the way."""
    found = [target("gpt", spec), target("hybrid", "te")]
    wrong = {each.model_class: each.mismatches(architecture) for each in found}
    for each in found:
        if not wrong[each.model_class]:
            if each.spec != spec:
                raise UserError(f"--spec {spec}: {each.model_class} has one layer specification; allowed: {each.spec}")
            return each
    near = "GPTModel" if found[0].fits_layers(architecture) else "MambaModel"
    raise UserError(f"Megatron-Core cannot express this model: {near}: {'; '.join(wrong[near])}")
