"""OLMoE: experts in every layer; queries and keys normalised over all heads together."""

from framework.convert.architectures.common import (
    ENDS,
    TRANSFORMER,
    attention,
    experts,
    heads,
    normalized,
    silu,
    whole,
)
from framework.convert.conditions import NORMALISED, SOFTMAX, every, gates
from framework.convert.fields import Fixed, Means, Size
from framework.convert.layers import Layers
from framework.convert.rope import Rope
from framework.convert.target import Target

TARGET = Target(
    model_type="olmoe",
    model_class="OlmoeForCausalLM",
    layers=Layers((("attention",), ("moe",))),
    conditions=(
        *TRANSFORMER, *gates(NORMALISED, SOFTMAX),
        *every("attention", qk_norm="full", qkv_bias=False, rope=True, rope_fraction=1.0, window=None),
        *every("moe", num_shared_experts=0, gate_scale=1.0, selection_bias_rate=0.0),
    ),
    config=(
        *whole(), *heads(), *silu("attention_bias"), Rope(), normalized(),
        Fixed("clip_qkv", None),
        Size("intermediate_size", "moe.d_expert"),
        Size("num_experts num_local_experts", "moe.num_experts", 64),
        Size("num_experts_per_tok", "moe.top_k", 8),
        Size("rms_norm_eps", "norm_eps", 1e-5),
        Means({"moe.activation": "swiglu", "attention.qk_norm": "full", "moe.router": "softmax_topk"}),
    ),
    tensors={"model": ENDS, "attention": attention(), "moe": experts()},
)
