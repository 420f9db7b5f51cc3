"""Layout of nano (github.com/llm-random/nano): blocks of attention and a feed-forward layer."""

from __future__ import annotations

import re
from typing import Any

from framework.convert.research.layout import Block, Layout, Parts, Shapes, link, one
from framework.errors import UserError

_LAYER = re.compile(r"encoder\.blocks\.(\d+)\..+")
_EMBEDDINGS = ("embedding.embedding.weight", "embedding.embedding.embedding.weight")


def find(shapes: Shapes) -> Parts:
    """The parts of a model. Raises UserError for what no model of ours has."""
    numbers = sorted({int(found[1]) for name in shapes if (found := _LAYER.fullmatch(name))})
    if not numbers or numbers != list(range(len(numbers))):
        raise UserError("not every encoder.blocks.N.* is there; allowed: a whole model of nano")
    blocks = [block for number in numbers for block in (
        Block("attention", f"encoder.blocks.{number}.attention_layer.norm.",
              f"encoder.blocks.{number}.attention_layer.layer."), _feed_forward(number, shapes))]
    embedding = next((name for name in _EMBEDDINGS if name in shapes), _EMBEDDINGS[0])
    return Parts(embedding, tuple(blocks), "head.norm.", "head.linear.weight")


def _feed_forward(number: int, shapes: Shapes) -> Block:
    prefix = f"encoder.blocks.{number}.ff_layer."
    kind = "moe" if f"{prefix}layer.router_weight" in shapes else "ffn"
    return Block(kind, f"{prefix}norm.", f"{prefix}layer.")


def _attention(own: Shapes, num_heads: int | None) -> dict[str, Any]:
    width, kv_width = own["q_proj.weight"][0], own["k_proj.weight"][0]
    if "rope.cos" in own:
        num_heads = width // own["rope.cos"][1]
    if not num_heads:
        return {}
    head_dim = width // num_heads
    return {"attention.num_heads": num_heads, "attention.head_dim": head_dim,
            "attention.num_kv_heads": kv_width // head_dim}


def _dense(own: Shapes, num_heads: int | None) -> dict[str, Any]:
    return {"ffn.d_ff": own["ff_pre_act.weight"][0],
            "ffn.activation": "swiglu" if "gate.weight" in own else "relu"}


def _experts(own: Shapes, num_heads: int | None) -> dict[str, Any]:
    num_experts, d_expert, _ = own["ff_pre_act_weight"]
    return {"moe.num_experts": num_experts, "moe.d_expert": d_expert}


LAYOUT = Layout(
    name="nano",
    find=find,
    sizes={"attention": _attention, "ffn": _dense, "moe": _experts},
    table={
        "attention": tuple(one(f"block.{ours}.weight", f"{theirs}_proj.weight")
                           for ours, theirs in (("q", "q"), ("k", "k"), ("v", "v"), ("out", "o"))),
        "ffn": tuple(one(f"block.{ours}.weight", f"{theirs}.weight") for ours, theirs in (
            ("gate", "gate"), ("up", "ff_pre_act"), ("down", "ff_post_act"))),
        "moe": (
            one("block.router.weight", "router_weight"),
            *((link(f"block.experts.{ours}", f"{theirs}_weight"),)
              for ours, theirs in (("gate", "gate"), ("up", "ff_pre_act"), ("down", "ff_post_act"))),
        ),
    },
    fixed={
        "attention": {"qk_norm": "none", "qkv_bias": False, "rope": True, "rope_fraction": 1.0, "window": None},
        "moe": {"activation": "swiglu", "router": "softmax_topk", "normalize_top_k": True, "gate_scale": 1.0,
                "num_shared_experts": 0, "selection_bias_rate": 0.0, "output_norm": False},
    },
    asked={
        "attention": {"num_heads": "of queries", "rope_base": "500000 in their Llama, 10000 after llm-random",
                      "rope_scaling": "'{factor: 32}' in their Llama, or null"},
        "moe": {"top_k": "experts a token visits", "capacity_factor": "of training, theirs 1.25; null: none dropped"},
    },
)
