"""Qwen2-MoE: fine-grained experts with a shared one, which a sigmoid gates; no norms of queries and keys.

A shared expert without a gate is written with a gate of zeros, which halves, and its last matrix doubled: exact. None
at all is one of width 0.
"""

from framework.convert.architectures.common import (
    ENDS,
    TRANSFORMER,
    attention,
    dense,
    dense_width,
    experts,
    heads,
    no_shared_expert,
    no_window,
    normalized,
    shared_width,
    silu,
    whole,
)
from framework.convert.conditions import NORMALISED, SOFTMAX, every, gates, some
from framework.convert.fields import Means, Size
from framework.convert.layers import SomeDense
from framework.convert.rope import Rope
from framework.convert.table import Filler, row
from framework.convert.target import Target, WhereZero
from framework.convert.transforms import Times

GATE = "mlp.shared_expert_gate.weight"
SHARED = (
    row("block.shared.gate.weight", "mlp.shared_expert.gate_proj.weight"),
    row("block.shared.up.weight", "mlp.shared_expert.up_proj.weight"),
    row("block.shared.down.weight", "mlp.shared_expert.down_proj.weight", when=lambda moe: moe.shared_expert_router),
    row("block.shared.down.weight", "mlp.shared_expert.down_proj.weight", Times(2.0),
        when=lambda moe: not moe.shared_expert_router),
    row("block.shared_router.weight", GATE),
    Filler(GATE, lambda model, moe: None if moe.shared_expert_router else (1, model.d_model)),
    *no_shared_expert("mlp.shared_expert"),
)
TARGET = Target(
    model_type="qwen2_moe",
    model_class="Qwen2MoeForCausalLM",
    layers=SomeDense((("attention",), ("moe", "ffn"))),
    conditions=(
        *TRANSFORMER, *some("moe"), *gates(NORMALISED, SOFTMAX),
        *every("attention", qk_norm="none", rope=True, rope_fraction=1.0, window=None),
        *every("moe", gate_scale=1.0, selection_bias_rate=0.0),
    ),
    config=(
        *whole(), *heads(), *silu(), Rope(), normalized(), no_window(), dense_width(5632),
        Size("qkv_bias", "attention.qkv_bias", True),
        Size("moe_intermediate_size", "moe.d_expert", 1408),
        shared_width("shared_expert_intermediate_size", 5632),
        Size("num_experts num_local_experts", "moe.num_experts", 60),
        Size("num_experts_per_tok", "moe.top_k", 4),
        Size("rms_norm_eps", "norm_eps", 1e-6),
        Means({"ffn.activation": "swiglu", "moe.activation": "swiglu", "attention.qk_norm": "none",
               "moe.router": "softmax_topk"}),
    ),
    tensors={"model": ENDS, "attention": attention(), "ffn": dense(), "moe": (*experts(), *SHARED)},
    from_weights=(WhereZero(GATE, "moe.shared_expert_router", zero=False, other=True),),
)
