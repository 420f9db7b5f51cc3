"""Nemotron-H: one sublayer in each layer, Mamba-2, attention without positions, relu2 blocks and experts.

Gates are sigmoids, with a bias that only selection sees; experts have no gate matrix.
"""

from typing import Any

from framework.convert.architectures import common
from framework.convert.architectures.common import (
    BACKBONE_ENDS,
    NO_EXTRAS,
    SEVERAL_EXPERTS,
    attention,
    experts,
    feed_forward,
    heads,
    mamba2_sizes,
    no_shared_expert,
    normalized,
    shared_width,
    unlimited_steps,
    whole,
)
from framework.convert.architectures.dots1 import BIAS_RATE
from framework.convert.conditions import SIGMOID, alike, every, gates, the_model
from framework.convert.fields import Computed, Config, Facts, Fixed, Means, Mismatch, Size, settings_of
from framework.convert.layers import Layers
from framework.convert.table import Filler, row
from framework.convert.target import Target, WhereZero

THEIR_LETTERS = {
    "mamba": "M", "linear_attention": "M", "attention": "*", "full_attention": "*", "moe": "E", "mlp": "-",
}
SMALLEST_STEP = 1e-30
"""transformers clamps time steps to this; its initial values take the logarithm, so that 0 would not do."""

NO_WIDTH = 1
"""Of zeros, for no shared expert: width 0 means another width there."""
SHARED_WIDTH = shared_width("moe_shared_expert_intermediate_size", 7688, none=NO_WIDTH)


class Spelled(Layers):
    """hybrid_override_pattern has our letters; since transformers 5 layers_block_type may name them instead."""

    def write(self, layers: list[str]) -> dict[str, Any]:
        return {**super().write(layers), "hybrid_override_pattern": "".join(layers)}

    def read(self, config: Config) -> list[str]:
        names = config.get("layers_block_type") or config.get("layer_types")
        letters = [THEIR_LETTERS.get(name, name) for name in names or config.get("hybrid_override_pattern") or ""]
        if not letters or not set(letters) <= set("M*E-"):
            raise Mismatch("hybrid_override_pattern or layers_block_type is missing or names other layers; allowed: "
                           "M, *, E, -")
        return letters


def _feed_forward(facts: Facts) -> dict[str, Any]:
    ffn, moe = (settings_of(facts.architecture, section) for section in ("ffn", "moe"))
    written = {"intermediate_size": facts.architecture.model.d_model if ffn is None else ffn.d_ff}
    if moe is not None:
        written |= SHARED_WIDTH.write(facts)
    return written


def _read_feed_forward(config: Config) -> dict[str, Any]:
    fields: dict[str, Any] = {"ffn.d_ff": config.get("intermediate_size", 21504)}
    if config.get("n_routed_experts", 8) and "moe_intermediate_size" in config:
        fields |= SHARED_WIDTH.read(config)
    return fields


TARGET = Target(
    model_type="nemotron_h",
    model_class="NemotronHForCausalLM",
    layers=Spelled((("mamba2", "attention", "moe", "ffn"),)),
    conditions=(
        *the_model(norm="rmsnorm", tie_embeddings=False), *NO_EXTRAS,
        *alike("attention"), *alike("mamba2"), *alike("ffn"), *alike("moe"),
        *gates(SIGMOID),
        *every("ffn", activation="relu2"),
        *every("attention", qk_norm="none", qkv_bias=False, rope=False, window=None),
        *every("moe", activation="relu2", shared_expert_router=False),
        *SEVERAL_EXPERTS,
    ),
    config=(
        *whole(), *heads(head_dim=128), *unlimited_steps(), normalized(default=True),
        *(Fixed(key, False) for key in ("attention_bias", "mlp_bias", "use_bias", "mamba_proj_bias")),
        Fixed("mlp_hidden_act", "relu2"), Fixed("mamba_hidden_act", "silu"), Fixed("use_conv_bias", True),
        Fixed("time_step_min", SMALLEST_STEP, default=0.001, allowed=(0.0,)),
        Fixed("n_group", 1), Fixed("topk_group", 1), Fixed("n_shared_experts", 1), Fixed("moe_latent_size", None),
        mamba2_sizes("mamba_num_heads", "mamba_head_dim", "n_groups", "ssm_state_size", "conv_kernel", "expand",
                     "chunk_size"),
        Size("n_routed_experts num_local_experts", "moe.num_experts", 8, unused=8),
        Size("num_experts_per_tok", "moe.top_k", 2, unused=2),
        Size("moe_intermediate_size", "moe.d_expert", 7688, unused=1),
        Size("routed_scaling_factor", "moe.gate_scale", 1.0, unused=1.0),
        Computed(_feed_forward, _read_feed_forward),
        Size("layer_norm_epsilon", "norm_eps", 1e-5),
        # Whatever tie_word_embeddings says: the class has no tied weights.
        Means({"tie_embeddings": False, "ffn.activation": "relu2", "moe.activation": "relu2", "attention.rope": False,
               "attention.qk_norm": "none", "moe.router": "sigmoid"}),
    ),
    tensors={
        "model": BACKBONE_ENDS,
        "attention": attention("norm", "mixer"),
        "mamba2": common.mamba2("norm", "mixer"),
        "ffn": (row("norm.weight", "norm.weight"), *feed_forward("block", "mixer")),
        "moe": (
            *experts("norm", "mixer"),
            row("block.router.selection_bias_E", "mixer.gate.e_score_correction_bias"),
            Filler("mixer.gate.e_score_correction_bias",
                   lambda model, moe: (moe.num_experts,) if moe.selection_bias_rate == 0 else None),
            *feed_forward("block.shared", "mixer.shared_experts"),
            *no_shared_expert("mixer.shared_experts", ("up", "down"), width=NO_WIDTH),
        ),
    },
    prefix="backbone.layers.{layer}.",
    from_weights=(WhereZero("mixer.gate.e_score_correction_bias", "moe.selection_bias_rate", zero=0.0,
                            other=BIAS_RATE),),
    without_attention=False,
    caution=common.groups_caution,
)
