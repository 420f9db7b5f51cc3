"""Mixtral: experts in every layer, their gates normalised."""

from framework.convert.architectures.common import ENDS, TRANSFORMER, attention, experts, heads, silu, whole
from framework.convert.conditions import NORMALISED, every, gates
from framework.convert.fields import Means, Size
from framework.convert.layers import Layers
from framework.convert.rope import Rope
from framework.convert.target import Target

TARGET = Target(
    model_type="mixtral",
    model_class="MixtralForCausalLM",
    layers=Layers((("attention",), ("moe",))),
    conditions=(
        *TRANSFORMER, *gates(NORMALISED),
        *every("attention", qk_norm="none", qkv_bias=False, rope=True, rope_fraction=1.0),
        *every("moe", num_shared_experts=0, gate_scale=1.0, selection_bias_rate=0.0),
    ),
    config=(
        *whole(), *heads(), *silu(), Rope(1e6),
        Size("sliding_window", "attention.window", None),
        Size("intermediate_size", "moe.d_expert"),
        Size("num_local_experts", "moe.num_experts", 8),
        Size("num_experts_per_tok", "moe.top_k", 2),
        Size("rms_norm_eps", "norm_eps", 1e-5),
        Means({"moe.activation": "swiglu", "attention.qk_norm": "none", "moe.router": "softmax_topk",
               "moe.normalize_top_k": True}),
    ),
    tensors={
        "model": ENDS, "attention": attention(),
        "moe": experts(module="block_sparse_moe", names=("w1", "w3", "w2")),
    },
)
