"""Llama: a dense Transformer."""

from framework.convert.architectures.common import ENDS, TRANSFORMER, attention, dense, heads, silu, whole
from framework.convert.conditions import every
from framework.convert.fields import Means, Size
from framework.convert.layers import Layers
from framework.convert.rope import Rope
from framework.convert.target import Target

TARGET = Target(
    model_type="llama",
    model_class="LlamaForCausalLM",
    layers=Layers((("attention",), ("ffn",))),
    conditions=(
        *TRANSFORMER,
        *every("attention", qk_norm="none", qkv_bias=False, rope=True, rope_fraction=1.0, window=None),
    ),
    config=(
        *whole(), *heads(), *silu("attention_bias", "mlp_bias"), Rope(),
        Size("intermediate_size", "ffn.d_ff"),
        Size("rms_norm_eps", "norm_eps", 1e-6),
        Means({"ffn.activation": "swiglu", "attention.qk_norm": "none"}),
    ),
    tensors={"model": ENDS, "attention": attention(), "ffn": dense()},
)
