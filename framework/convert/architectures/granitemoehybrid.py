"""Granite hybrids: Mamba-2 and attention, experts in every layer or in none, factors of their own."""

from typing import Any

from framework.convert.architectures import common
from framework.convert.architectures.common import (
    ENDS,
    TRANSFORMER,
    attention,
    heads,
    mamba2_sizes,
    silu,
    unlimited_steps,
    whole,
)
from framework.convert.architectures.mamba2 import WHOLE_EXPAND
from framework.convert.conditions import NORMALISED, alike, every, gates
from framework.convert.fields import Computed, Config, Facts, Fixed, Means, Mismatch, Size, settings_of
from framework.convert.layers import Layers
from framework.convert.rope import Rope
from framework.convert.table import Filler, row
from framework.convert.target import Target
from framework.convert.transforms import Concat

MIXERS = {"M": "mamba", "*": "attention"}
THEIR_MIXERS = {"mamba": "M", "attention": "*", "linear_attention": "M", "full_attention": "*"}


class Typed(Layers):
    """layer_types names each layer's mixer; num_local_experts is 0 where no layer has experts."""

    def require(self, layers: list[str]) -> None:
        if len({layer[1] for layer in layers}) > 1:
            raise Mismatch("some layers have experts and some have none (allowed: experts in all or in none)")

    def write(self, layers: list[str]) -> dict[str, Any]:
        return {**super().write(layers), "layer_types": [MIXERS[layer[0]] for layer in layers]}

    def read(self, config: Config) -> list[str]:
        types = config.get("layer_types") or config.get("layers_block_type") or ["mamba"] * self.count(config)
        if len(types) != self.count(config) or not THEIR_MIXERS.keys() >= set(types):
            raise Mismatch("layer_types names other layers; allowed: mamba or attention, one for each layer")
        feed_forward = "E" if config.get("num_local_experts", 8) else "-"
        return [THEIR_MIXERS[each] + feed_forward for each in types]


def _write_feed_forward(facts: Facts) -> dict[str, Any]:
    ffn, moe = (settings_of(facts.architecture, section) for section in ("ffn", "moe"))
    if moe is None:
        return {"num_local_experts": 0, "num_experts_per_tok": 0, "intermediate_size": ffn.d_ff,
                "shared_intermediate_size": ffn.d_ff}
    return {"num_local_experts": moe.num_experts, "num_experts_per_tok": moe.top_k, "intermediate_size": moe.d_expert,
            "shared_intermediate_size": moe.num_shared_experts * moe.d_expert}


def _read_feed_forward(config: Config) -> dict[str, Any]:
    shared, width = config.get("shared_intermediate_size", 1024), config["intermediate_size"]
    if not (num_experts := config.get("num_local_experts", 8)):
        return {"ffn.d_ff": shared}
    if shared % width:
        raise Mismatch(f"shared_intermediate_size is {shared}; allowed: a multiple of intermediate_size {width}")
    return {"moe.num_experts": num_experts, "moe.top_k": config.get("num_experts_per_tok", 2), "moe.d_expert": width,
            "moe.num_shared_experts": shared // width}


def _write_factors(facts: Facts) -> dict[str, Any]:
    factors, settings = facts.architecture.model.multipliers, settings_of(facts.architecture, "attention")
    own = 1.0 if settings is None else settings.head_dim**-0.5
    return {
        "embedding_multiplier": factors.embedding, "residual_multiplier": factors.residual,
        "logits_scaling": 1 / factors.logits, "attention_multiplier": factors.attention or own,
    }


def _read_factors(config: Config) -> dict[str, Any]:
    return {
        "multipliers.embedding": config.get("embedding_multiplier", 1.0),
        "multipliers.residual": config.get("residual_multiplier", 1.0),
        "multipliers.logits": 1 / config.get("logits_scaling", 1.0),
        "multipliers.attention": config.get("attention_multiplier", 1.0),
    }


def _write_positions(facts: Facts) -> dict[str, Any]:
    settings = settings_of(facts.architecture, "attention")
    kind = "rope" if settings is not None and settings.rope else "nope"
    return {"position_embedding_type": kind} | Rope().write(facts)


def _read_positions(config: Config) -> dict[str, Any]:
    if config.get("position_embedding_type") == "rope":
        return Rope().read(config)
    return {"attention.rope": False}


SHARED = ("shared_mlp.input_linear.weight", "shared_mlp.output_linear.weight")
NORM = row("norm.weight", "post_attention_layernorm.weight")
TARGET = Target(
    model_type="granitemoehybrid",
    model_class="GraniteMoeHybridForCausalLM",
    layers=Typed((("mamba2", "attention"), ("moe", "ffn"))),
    conditions=(
        *TRANSFORMER, *alike("mamba2"), *gates(NORMALISED), *WHOLE_EXPAND,
        *every("attention", qk_norm="none", qkv_bias=False, rope_fraction=1.0, window=None),
        *every("moe", shared_expert_router=False, gate_scale=1.0, selection_bias_rate=0.0),
    ),
    config=(
        *whole(), *heads(), *silu("attention_bias", "mamba_proj_bias"), *unlimited_steps(),
        Fixed("mamba_conv_bias", True),
        mamba2_sizes("mamba_n_heads", "mamba_d_head", "mamba_n_groups", "mamba_d_state", "mamba_d_conv",
                     "mamba_expand", "mamba_chunk_size"),
        Computed(_write_feed_forward, _read_feed_forward),
        Computed(_write_factors, _read_factors),
        Computed(_write_positions, _read_positions),
        Size("rms_norm_eps", "norm_eps", 1e-6),
        Means({"ffn.activation": "swiglu", "moe.activation": "swiglu", "attention.qk_norm": "none",
               "moe.router": "softmax_topk", "moe.normalize_top_k": True}),
    ),
    tensors={
        "model": ENDS,
        "attention": attention(),
        "mamba2": common.mamba2("input_layernorm", "mamba"),
        "ffn": (NORM, row("block.gate.weight block.up.weight", SHARED[0], Concat()),
                row("block.down.weight", SHARED[1])),
        "moe": (
            NORM,
            row("block.router.weight", "block_sparse_moe.router.layer.weight"),
            row("block.experts.gate block.experts.up", "block_sparse_moe.input_linear.weight", Concat(1)),
            row("block.experts.down", "block_sparse_moe.output_linear.weight"),
            row("block.shared.gate.weight block.shared.up.weight", SHARED[0], Concat()),
            row("block.shared.down.weight", SHARED[1]),
            Filler(SHARED[0], lambda model, moe: None if moe.num_shared_experts else (0, model.d_model)),
            Filler(SHARED[1], lambda model, moe: None if moe.num_shared_experts else (model.d_model, 0)),
        ),
    },
    holds_multipliers=True,
    without_attention=False,
    caution=common.groups_caution,
)
