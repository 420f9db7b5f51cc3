"""GLM-4-MoE: as dots1, with or without norms of queries and keys, with biases and a part of each head rotated."""

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
from framework.convert.architectures.dots1 import BIAS, BIAS_RATE
from framework.convert.conditions import SIGMOID, every, gates, some
from framework.convert.fields import Computed, Fixed, Means, Size, Written, flag, settings_of
from framework.convert.layers import DenseFirst
from framework.convert.rope import Rope
from framework.convert.target import Target, WhereZero


class OneDenseFirst(DenseFirst):
    """Where the config is silent, one layer is dense."""

    default = 1


TARGET = Target(
    model_type="glm4_moe",
    model_class="Glm4MoeForCausalLM",
    layers=OneDenseFirst((("attention",), ("moe", "ffn"))),
    conditions=(
        *TRANSFORMER, *some("moe"), *gates(SIGMOID),
        *SEVERAL_EXPERTS,
        *every("attention", qk_norm=("none", "head"), rope=True, window=None),
        *every("moe", shared_expert_router=False),
    ),
    config=(
        *whole(), *heads(), *silu(), Rope(fraction=0.5), normalized(default=True), dense_width(10944),
        Size("attention_bias", "attention.qkv_bias", False),
        Computed(
            lambda facts: {"use_qk_norm": settings_of(facts.architecture, "attention").qk_norm == "head"},
            lambda config: {"attention.qk_norm": "head" if flag(config, "use_qk_norm", False) else "none"},
        ),
        Fixed("n_group", 1), Fixed("topk_group", 1),
        Written(lambda facts: {"num_nextn_predict_layers": 0}),
        Size("moe_intermediate_size", "moe.d_expert", 1408),
        Size("n_routed_experts num_local_experts", "moe.num_experts", 128),
        Size("n_shared_experts", "moe.num_shared_experts", 1),
        Size("num_experts_per_tok", "moe.top_k", 8),
        Size("routed_scaling_factor", "moe.gate_scale", 1.0),
        Size("rms_norm_eps", "norm_eps", 1e-5),
        Means({"ffn.activation": "swiglu", "moe.activation": "swiglu", "moe.router": "sigmoid"}),
    ),
    tensors={"model": ENDS, "attention": attention(), "ffn": dense(),
             "moe": sigmoid_experts("post_attention_layernorm", "mlp")},
    from_weights=(WhereZero(BIAS, "moe.selection_bias_rate", zero=0.0, other=BIAS_RATE),),
)
