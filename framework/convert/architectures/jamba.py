"""Jamba: Mamba-1 with norms on dt, B and C, attention without positions, experts with gates that are not normalised.

MoE-Mamba (arXiv 2401.04081) is this without attention. Experts and dense blocks have one width.
"""

from typing import Any

from framework.convert.architectures.common import (
    ENDS,
    TRANSFORMER,
    attention,
    dense,
    experts,
    heads,
    mamba1,
    silu,
    whole,
)
from framework.convert.architectures.mamba import WHOLE_EXPAND, rank
from framework.convert.conditions import SOFTMAX, Condition, alike, every, gates, holds
from framework.convert.fields import Computed, Config, Fixed, Means, Mismatch, Size, settings_of
from framework.convert.layers import Layers
from framework.convert.table import row
from framework.convert.target import Target


class Periodic(Layers):
    """Attention stands in every so many layers, experts likewise, each from an offset on."""

    def require(self, layers: list[str]) -> None:
        for at, letter in ((0, "*"), (1, "E")):
            _period([layer[at] == letter for layer in layers], letter)

    def write(self, layers: list[str]) -> dict[str, Any]:
        attention_at = _period([layer[0] == "*" for layer in layers], "*")
        experts_at = _period([layer[1] == "E" for layer in layers], "E")
        return {
            **super().write(layers), "attn_layer_period": attention_at[0], "attn_layer_offset": attention_at[1],
            "expert_layer_period": experts_at[0], "expert_layer_offset": experts_at[1],
        }

    def read(self, config: Config) -> list[str]:
        attention_at = config.get("attn_layer_period", 8), config.get("attn_layer_offset", 4)
        experts_at = config.get("expert_layer_period", 2), config.get("expert_layer_offset", 1)
        sparse = config.get("num_experts", 16) > 1
        return [
            ("*" if index % attention_at[0] == attention_at[1] else "m")
            + ("E" if sparse and index % experts_at[0] == experts_at[1] else "-") for index in range(self.count(config))
        ]


def _period(there: list[bool], letter: str) -> tuple[int, int]:
    """(period, offset) of the layers that have something; beyond the last layer where none has."""
    if not any(there):
        return len(there) + 1, len(there)
    for period in range(1, len(there) + 1):
        if (offset := there.index(True)) < period and all(
                each == (index % period == offset) for index, each in enumerate(there)):
            return period, offset
    raise Mismatch(f"{letter} does not stand in every so many layers (allowed: one period)")


def _one_width(architecture: Any) -> str | None:
    ffn, moe = (settings_of(architecture, section) for section in ("ffn", "moe"))
    if ffn is None or moe is None or ffn.d_ff == moe.d_expert:
        return None
    return f"model.moe.d_expert is {moe.d_expert} and model.ffn.d_ff {ffn.d_ff} (allowed: one width)"


def _write_width(facts: Any) -> dict[str, Any]:
    ffn, moe = (settings_of(facts.architecture, section) for section in ("ffn", "moe"))
    return {"intermediate_size": ffn.d_ff if moe is None else moe.d_expert}


NORMS = tuple(row(f"block.{name}_norm.weight", f"mamba.{name.lower()}_layernorm.weight") for name in ("dt", "B", "C"))
TARGET = Target(
    model_type="jamba",
    model_class="JambaForCausalLM",
    layers=Periodic((("mamba1", "attention"), ("moe", "ffn"))),
    conditions=(
        *TRANSFORMER, *alike("mamba1"), *gates(SOFTMAX), Condition("width", _one_width), *WHOLE_EXPAND,
        *every("attention", qk_norm="none", qkv_bias=False, rope=False, window=None),
        *every("mamba1", inner_norms=True),
        *every("moe", num_shared_experts=0, gate_scale=1.0, selection_bias_rate=0.0),
        *holds("experts", "model.moe.num_experts is 1 (allowed: 2 or more)", lambda _, moe: moe.num_experts > 1, "moe"),
    ),
    config=(
        *whole(), *heads(), *silu("mamba_proj_bias"), rank("mamba_dt_rank"),
        Fixed("mamba_conv_bias", True),
        Computed(_write_width, lambda config: {
            "ffn.d_ff": config["intermediate_size"], "moe.d_expert": config["intermediate_size"]}),
        Size("num_experts num_local_experts", "moe.num_experts", 16, unused=1),
        Size("num_experts_per_tok", "moe.top_k", 2, unused=1),
        Size("mamba_d_state", "mamba.d_state", 16, unused=16),
        Size("mamba_d_conv", "mamba.d_conv", 4, unused=4),
        Size("mamba_expand", "mamba.expand", 2, unused=2),
        Size("rms_norm_eps", "norm_eps", 1e-6),
        Means({"ffn.activation": "swiglu", "moe.activation": "swiglu", "mamba.inner_norms": True,
               "attention.rope": False, "attention.qk_norm": "none", "moe.router": "softmax_topk",
               "moe.normalize_top_k": False}),
    ),
    tensors={
        "model": (row("embedding.weight", "model.embed_tokens.weight"),
                  row("final_norm.weight", "model.final_layernorm.weight"), ENDS[2]),
        "attention": attention(),
        "mamba1": (*mamba1("input_layernorm", "mamba"), *NORMS),
        "ffn": dense("pre_ff_layernorm", "feed_forward"),
        "moe": experts("pre_ff_layernorm", "feed_forward", "router"),
    },
    without_attention=False,
)
