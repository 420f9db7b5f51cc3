"""dots.llm1: sigmoid gates, a bias that only selection sees, shared experts, norms of queries and keys."""

from typing import Any

from framework.convert.architectures.common import (
    ENDS,
    SEVERAL_EXPERTS,
    TRANSFORMER,
    attention,
    dense,
    dense_width,
    heads,
    normalized,
    sigmoid_experts,
    silu,
    whole,
)
from framework.convert.conditions import SIGMOID, every, gates, some
from framework.convert.fields import Computed, Config, Fixed, Means, Mismatch, Size
from framework.convert.layers import DenseFirst
from framework.convert.rope import Rope
from framework.convert.target import Target, WhereZero

BIAS = "mlp.gate.e_score_correction_bias"
BIAS_RATE = 1e-3
"""Step of the bias in DeepSeek-V3 (arXiv 2412.19437, section 4.2); weights do not tell theirs."""


def windows(config: Config) -> dict[str, Any]:
    """layer_types says which layers have a window; else those from max_window_layers on, where there is one."""
    if (kinds := config.get("layer_types")) is not None:
        windowed = "sliding_attention" in kinds
    else:
        windowed = config.get("sliding_window", 4096) and (
            config.get("max_window_layers", 62) < config["num_hidden_layers"])
    if windowed:
        raise Mismatch("layer_types or sliding_window ask for windows in some layers; allowed: full attention")
    return {"attention.window": None}


TARGET = Target(
    model_type="dots1",
    model_class="Dots1ForCausalLM",
    layers=DenseFirst((("attention",), ("moe", "ffn"))),
    conditions=(
        *TRANSFORMER, *some("moe"), *gates(SIGMOID),
        *SEVERAL_EXPERTS,
        *every("attention", qk_norm="head", qkv_bias=False, rope=True, rope_fraction=1.0, window=None),
        *every("moe", shared_expert_router=False),
    ),
    config=(
        *whole(), *heads(), *silu("attention_bias"), Rope(), normalized(), dense_width(10944),
        Computed(lambda facts: {"sliding_window": None}, windows),
        Fixed("n_group", 1), Fixed("topk_group", 1),
        Size("moe_intermediate_size", "moe.d_expert", 1408),
        Size("n_routed_experts num_local_experts", "moe.num_experts"),
        Size("n_shared_experts", "moe.num_shared_experts"),
        Size("num_experts_per_tok", "moe.top_k"),
        Size("routed_scaling_factor", "moe.gate_scale", 1.0),
        Size("rms_norm_eps", "norm_eps", 1e-6),
        Means({"ffn.activation": "swiglu", "moe.activation": "swiglu", "attention.qk_norm": "head",
               "moe.router": "sigmoid"}),
    ),
    tensors={"model": ENDS, "attention": attention(), "ffn": dense(),
             "moe": sigmoid_experts("post_attention_layernorm", "mlp")},
    from_weights=(WhereZero(BIAS, "moe.selection_bias_rate", zero=0.0, other=BIAS_RATE),),
)
