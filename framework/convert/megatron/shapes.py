"""What the names and shapes of a model's tensors tell of its recipe."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from framework.convert.layers import spell
from framework.convert.megatron.tables import EXPERTS, LAST_NORMS, QKV
from framework.errors import UserError

Shapes = Mapping[str, tuple[int, ...]]
_LAYER = re.compile(r"decoder\.layers\.(\d+)\.(.*)")
_SUBLAYERS = {"self_attention.linear_proj.weight": "*", "mlp.linear_fc2.weight": "-", "mlp.router.weight": "E",
              "mixer.out_proj.weight": "M"}
"""What a layer has, by the tensor that tells it."""


def kind_of(shapes: Shapes) -> str:
    """gpt or hybrid, which differ in the name of the last norm. Raises UserError where there is neither."""
    for kind, norm in LAST_NORMS.items():
        if f"{norm}.weight" in shapes:
            return kind
    raise UserError(f"no {' and no '.join(f'{norm}.weight' for norm in LAST_NORMS.values())} in it; allowed: a "
                    "checkpoint of GPTModel or MambaModel")


def fields_of(shapes: Shapes, num_heads: int | None) -> dict[str, Any]:
    """Dotted fields of the recipe's model section. num_heads: of attention, which no shape tells.

    Raises UserError where there is no such model.
    """
    layers = _by_layer(shapes)
    letters = ["".join(letter for name, letter in _SUBLAYERS.items() if name in layers[layer])
               for layer in range(len(layers))]
    ends = {name: shape for name, shape in shapes.items() if not _LAYER.fullmatch(name)}
    if not letters or "" in letters or len(ends.get("embedding.word_embeddings.weight", ())) != 2:
        raise UserError("no layers or no embedding.word_embeddings.weight in it; allowed: a whole GPTModel or "
                        "MambaModel")
    vocab_size, d_model = ends["embedding.word_embeddings.weight"]
    fields: dict[str, Any] = {
        "pattern": spell(letters), "d_model": d_model, "vocab_size": vocab_size,
        "tie_embeddings": "output_layer.weight" not in ends,
        "norm": "layernorm" if f"{LAST_NORMS[kind_of(shapes)]}.bias" in ends else "rmsnorm"}
    readers = {"*": _attention, "-": _dense, "E": _experts, "M": _mamba2}
    for letter, read in readers.items():
        layer = next((layers[index] for index, each in enumerate(letters) if letter in each), None)
        if layer is not None:
            try:
                fields |= read(layer, d_model, num_heads)
            except UserError:
                raise
            except (KeyError, ValueError, ZeroDivisionError, IndexError) as error:
                raise UserError(f"sizes of {letter} sublayers cannot be told from shapes ({type(error).__name__}: "
                                f"{error}); allowed: a whole GPTModel or MambaModel") from None
    return fields


def _by_layer(shapes: Shapes) -> dict[int, Shapes]:
    layers: dict[int, dict[str, tuple[int, ...]]] = {}
    for name, shape in shapes.items():
        if found := _LAYER.fullmatch(name):
            layers.setdefault(int(found[1]), {})[found[2]] = shape
    if missing := [layer for layer in range(len(layers)) if layer not in layers]:
        raise UserError(f"layer {missing[0]} is missing; allowed: a whole checkpoint")
    return layers


def _attention(layer: Shapes, d_model: int, num_heads: int | None) -> dict[str, Any]:
    width = layer["self_attention.linear_proj.weight"][1]
    normed = layer.get("self_attention.q_layernorm.weight")
    if num_heads is None:
        raise UserError("no arguments in common.pt, and no shape tells the number of attention heads; allowed: state "
                        "model.attention.num_heads=...")
    if num_heads < 1 or width % num_heads:
        raise UserError(f"{num_heads} attention heads of a matrix of {width} columns; allowed: a divisor")
    head_dim = width // num_heads
    return {
        "attention.num_heads": num_heads, "attention.head_dim": head_dim,
        "attention.num_kv_heads": (layer[f"{QKV}.weight"][0] - width) // 2 // head_dim,
        "attention.qk_norm": "none" if normed is None else "head", "attention.qkv_bias": f"{QKV}.bias" in layer,
    }


def _dense(layer: Shapes, d_model: int, num_heads: int | None) -> dict[str, Any]:
    width = layer["mlp.linear_fc2.weight"][1]
    gated = layer["mlp.linear_fc1.weight"][0] == 2 * width
    return {"ffn.d_ff": width, **({"ffn.activation": "swiglu"} if gated else {})}


def _experts(layer: Shapes, d_model: int, num_heads: int | None) -> dict[str, Any]:
    num_experts, _, width = layer[f"{EXPERTS}.linear_fc2.weight"]
    shared = layer.get("mlp.shared_experts.linear_fc2.weight", (d_model, 0))[1]
    if shared % width:
        raise UserError(f"shared experts are {shared} wide; allowed: a multiple of the others' {width}")
    fields = {"moe.num_experts": num_experts, "moe.d_expert": width, "moe.num_shared_experts": shared // width,
              "moe.shared_expert_router": "mlp.shared_experts.gate_weight" in layer}
    if layer[f"{EXPERTS}.linear_fc1.weight"][1] == 2 * width:
        fields["moe.activation"] = "swiglu"
    if "mlp.router.expert_bias" in layer:
        fields |= {"moe.router": "sigmoid", "moe.selection_bias_rate": 1e-3}
    return fields


def _mamba2(layer: Shapes, d_model: int, num_heads: int | None) -> dict[str, Any]:
    inner, heads = layer["mixer.in_proj.weight.x"][0], layer["mixer.in_proj.weight.dt"][0]
    return {"mamba.expand": inner / d_model, "mamba.head_dim": inner // heads,
            "mamba.d_state": layer["mixer.in_proj.weight.B"][0], "mamba.num_groups": 1,
            "mamba.d_conv": layer["mixer.conv1d.weight.x"][-1]}
