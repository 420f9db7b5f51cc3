"""Qwen3: a dense Transformer that normalises queries and keys of each head."""

from framework.convert.architectures.common import ENDS, TRANSFORMER, attention, dense, heads, no_window, silu, whole
from framework.convert.conditions import every
from framework.convert.fields import Means, Size
from framework.convert.layers import Layers
from framework.convert.rope import Rope
from framework.convert.target import Target

TARGET = Target(
    model_type="qwen3",
    model_class="Qwen3ForCausalLM",
    layers=Layers((("attention",), ("ffn",))),
    conditions=(
        *TRANSFORMER,
        *every("attention", qk_norm="head", qkv_bias=False, rope=True, rope_fraction=1.0, window=None),
    ),
    config=(
        *whole(), *heads(head_dim=128), *silu("attention_bias"), Rope(), no_window(),
        Size("intermediate_size", "ffn.d_ff"),
        Size("rms_norm_eps", "norm_eps", 1e-6),
        Means({"ffn.activation": "swiglu", "attention.qk_norm": "head"}),
    ),
    tensors={"model": ENDS, "attention": attention(), "ffn": dense()},
)
