"""Layout of llm-random (github.com/llm-random/llm-random, package lizrd): pre-norm blocks of named sublayers."""

from __future__ import annotations

import re
from typing import Any

from framework.convert.architectures.common import mamba1
from framework.convert.research.layout import Block, Layout, Parts, Shapes, link, one
from framework.convert.research.transforms import TRANSPOSED, Chunks
from framework.convert.transforms import Chain, Concat, GroupedHeads
from framework.errors import UserError

_SUBLAYER = re.compile(r"(encoder\.blocks\.block_(\d+)\.block\.residual_([^.]+)\.layer\.).+")
_KINDS = {"output_projection.weight": "attention", "logging_ff_pre_relu.weight": "ffn", "w1_gate.weight": "ffn",
          "router.gate": "moe", "in_proj.weight": "mamba1"}
"""What a sublayer is, by the tensor that tells it."""
EXPERTS = "expert_inner_function"


def find(shapes: Shapes) -> Parts:
    """The parts of a model. Raises UserError for what no model of ours has."""
    if positions := [name for name in shapes if name.startswith("embedding_layer.layers.1.")]:
        raise UserError(f"{positions[0]}: learned absolute positions, which no model of ours has; allowed: rotary "
                        "positions or none")
    if "head.unembedding.head_norm.weight" not in shapes and "head.unembedding.head_norm.g" not in shapes:
        raise UserError("no norm before the head, which every model of ours has; allowed: head.unembedding.head_norm")
    sublayers: dict[tuple[int, str], str] = {}
    for name in shapes:
        if found := _SUBLAYER.fullmatch(name):
            sublayers.setdefault((int(found[2]), found[3]), found[1])
    numbers = sorted({number for number, _ in sublayers})
    if not numbers or numbers != list(range(len(numbers))):
        raise UserError("not every encoder.blocks.block_N.block.residual_*.layer.* is there; allowed: a whole model of "
                        "llm-random with norms before its sublayers")
    # Within a block the order of the file is that of the sublayers.
    ordered = sorted(sublayers.items(), key=lambda each: each[0][0])
    blocks = tuple(_block(prefix, name, shapes) for (_, name), prefix in ordered)
    return Parts("embedding_layer.layers.0.weight", blocks, "head.unembedding.head_norm.",
                 "head.unembedding.head.weight")


def _block(prefix: str, name: str, shapes: Shapes) -> Block:
    body = f"{prefix}{name}."
    for tensor, kind in _KINDS.items():
        if body + tensor in shapes:
            return Block(kind, f"{prefix}pre_norm.", body)
    raise UserError(f"{body}* is no sublayer of ours; allowed: one with {', '.join(_KINDS)}")


def _attention(own: Shapes, num_heads: int | None) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    if "rope.cos" in own:
        fields["attention.rope"] = True
        num_heads = own["output_projection.weight"][1] // own["rope.cos"][1]
    if num_heads:
        fields |= {"attention.num_heads": num_heads, "attention.num_kv_heads": num_heads,
                   "attention.head_dim": own["output_projection.weight"][1] // num_heads}
    return fields


def _dense(own: Shapes, num_heads: int | None) -> dict[str, Any]:
    if "w1_gate.weight" in own:
        return {"ffn.d_ff": own["w1_gate.weight"][0] // 2, "ffn.activation": "swiglu"}
    return {"ffn.d_ff": own["logging_ff_pre_relu.weight"][0], "ffn.activation": "relu"}


def _experts(own: Shapes, num_heads: int | None) -> dict[str, Any]:
    lin1 = own.get(f"{EXPERTS}.lin1_weight") or own["lin1_weight"]
    fields = {"moe.num_experts": own["router.gate"][1], "moe.d_expert": lin1[2]}
    gated = f"{EXPERTS}.gate_weight" in own or f"{EXPERTS}.swi_glu_gate_weight" in own
    return fields | {"moe.activation": "swiglu"} if gated else fields


def _mamba(own: Shapes, num_heads: int | None) -> dict[str, Any]:
    d_inner, d_state = own["A_log"]
    return {"mamba.d_state": d_state, "mamba.d_conv": own["conv1d.weight"][2],
            "mamba.dt_rank": own["dt_proj.weight"][1], "mamba.expand": d_inner / own["in_proj.weight"][1]}


_QKV = "block.q.weight block.k.weight block.v.weight"
_APART = "input_projection_q.weight input_projection_k.weight input_projection_v.weight"
LAYOUT = Layout(
    name="llm-random",
    find=find,
    sizes={"attention": _attention, "ffn": _dense, "moe": _experts, "mamba1": _mamba},
    table={
        "attention": (
            # Each head has its queries, keys and values next to each other. The code with three matrices stacked
            # these, and then took the stack apart in the same way: what each is called is not what it is.
            (link(_QKV, "input_projection.weight", lambda settings: GroupedHeads(settings.head_dim)),
             link(_QKV, _APART, lambda settings: Chain(GroupedHeads(settings.head_dim), Chunks(3)))),
            one("block.out.weight", "output_projection.weight"),
        ),
        "ffn": (
            # silu is of the first half.
            (link("block.gate.weight block.up.weight", "w1_gate.weight", Concat()),
             link("block.up.weight", "logging_ff_pre_relu.weight")),
            (link("block.down.weight", "w2.weight"), link("block.down.weight", "logging_ff_post_relu.weight")),
        ),
        "moe": (
            one("block.router.weight", "router.gate", TRANSPOSED),
            # silu is of gate_weight, but in an older class of lin1_weight.
            (link("block.experts.gate", f"{EXPERTS}.lin1_weight", TRANSPOSED),
             link("block.experts.gate", f"{EXPERTS}.gate_weight", TRANSPOSED)),
            (link("block.experts.up", "lin1_weight", TRANSPOSED),
             link("block.experts.up", f"{EXPERTS}.lin1_weight", TRANSPOSED),
             link("block.experts.up", f"{EXPERTS}.swi_glu_gate_weight", TRANSPOSED)),
            (link("block.experts.down", "lin2_weight", TRANSPOSED),
             link("block.experts.down", f"{EXPERTS}.lin2_weight", TRANSPOSED)),
        ),
        "mamba1": tuple(
            one(" ".join(row.ours), row.theirs.removeprefix("mamba."), row.transform)
            for row in mamba1("norm", "mamba") if row.theirs.startswith("mamba.")),
    },
    zeros={"ffn": ("logging_ff_pre_relu.bias", "logging_ff_post_relu.bias")},
    fixed={
        "attention": {"qk_norm": "none", "qkv_bias": False, "rope_fraction": 1.0, "rope_scaling": None, "window": None},
        "moe": {"router": "softmax_topk", "normalize_top_k": False, "gate_scale": 1.0, "num_shared_experts": 0,
                "selection_bias_rate": 0.0, "output_norm": False},
        "mamba": {"inner_norms": False},
    },
    usual={"attention": {"rope_base": 10000.0}, "moe": {"activation": "relu"}},
    asked={
        "attention": {"num_heads": "heads", "rope": "true, or false where there were no positions at all"},
        "moe": {"top_k": "experts a token visits", "capacity_factor": "of training; null: no token is dropped"},
    },
    layernorm_eps=1e-5,
)
