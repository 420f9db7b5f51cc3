"""Qwen3-MoE: fine-grained experts, dense layers among them; queries and keys of each head normalised."""

from framework.convert.architectures.common import (
    ENDS,
    TRANSFORMER,
    attention,
    dense,
    dense_width,
    experts,
    heads,
    no_window,
    normalized,
    silu,
    whole,
)
from framework.convert.conditions import NORMALISED, SOFTMAX, every, gates, some
from framework.convert.fields import Means, Size
from framework.convert.layers import SomeDense
from framework.convert.rope import Rope
from framework.convert.target import Target

TARGET = Target(
    model_type="qwen3_moe",
    model_class="Qwen3MoeForCausalLM",
    layers=SomeDense((("attention",), ("moe", "ffn"))),
    conditions=(
        *TRANSFORMER, *some("moe"), *gates(NORMALISED, SOFTMAX),
        *every("attention", qk_norm="head", qkv_bias=False, rope=True, rope_fraction=1.0, window=None),
        *every("moe", num_shared_experts=0, gate_scale=1.0, selection_bias_rate=0.0),
    ),
    config=(
        *whole(), *heads(), *silu("attention_bias"), Rope(), normalized(), no_window(), dense_width(6144),
        Size("moe_intermediate_size", "moe.d_expert", 768),
        Size("num_experts num_local_experts", "moe.num_experts", 128),
        Size("num_experts_per_tok", "moe.top_k", 8),
        Size("rms_norm_eps", "norm_eps", 1e-6),
        Means({"ffn.activation": "swiglu", "moe.activation": "swiglu", "attention.qk_norm": "head",
               "moe.router": "softmax_topk"}),
    ),
    tensors={"model": ENDS, "attention": attention(), "ffn": dense(), "moe": experts()},
)
