"""Names of Megatron-Core's tensors within a layer, and at the model's ends, beside ours.

Layers stand one by one (`decoder.layers.3.`), experts of a layer in one tensor; `names` sees the other layouts so.
With Transformer Engine a norm belongs to the matrix that follows it, and Megatron-Core's own modules are saved under
the same names, but for the norm before a mixture of experts.
"""

from __future__ import annotations

from framework.convert.table import Row, Table, row
from framework.convert.transforms import Concat, GroupedHeads, Unsqueeze

PREFIX = "decoder.layers.{layer}."
EXPERTS = "mlp.experts.experts"
QKV = "self_attention.linear_qkv"
LAST_NORMS = {"gpt": "decoder.final_layernorm", "hybrid": "decoder.final_norm"}
SPECS = {"te": "pre_mlp_layernorm.", "local": "mlp.linear_fc1.layer_norm_"}
"""Layer specification: where the norm before a mixture of experts is kept."""


def tensors(model: str, spec: str, head_dim: int) -> Table:
    """The table of a model. model: of LAST_NORMS. spec: of SPECS. head_dim: of attention, in all layers."""
    return {
        "model": (
            row("embedding.weight", "embedding.word_embeddings.weight"),
            *norm("final_norm", f"{LAST_NORMS[model]}."),
            row("unembedding.weight", "output_layer.weight"),
        ),
        "attention": attention(head_dim),
        "ffn": (*norm("norm", "mlp.linear_fc1.layer_norm_"), *feed_forward("block", "mlp")),
        "moe": experts(SPECS[spec]),
        "mamba2": mamba2(),
    }


def norm(ours: str, theirs: str) -> tuple[Row, ...]:
    """A norm's weight, and its bias where it has one."""
    return (row(f"{ours}.weight", f"{theirs}weight"), row(f"{ours}.bias", f"{theirs}bias"))


def attention(head_dim: int) -> tuple[Row, ...]:
    """One matrix for queries, keys and values."""
    return (
        *norm("norm", f"{QKV}.layer_norm_"),
        *(row(" ".join(f"block.{each}.{name}" for each in "qkv"), f"{QKV}.{name}", GroupedHeads(head_dim))
          for name in ("weight", "bias")),
        *(row(f"block.{each}_norm.weight", f"self_attention.{each}_layernorm.weight") for each in "qk"),
        row("block.out.weight", "self_attention.linear_proj.weight"),
    )


def feed_forward(ours: str, theirs: str) -> tuple[Row, ...]:
    """The gate stands before the other matrix, in one."""
    return (
        row(f"{ours}.gate.weight {ours}.up.weight", f"{theirs}.linear_fc1.weight", Concat()),
        row(f"{ours}.up.weight", f"{theirs}.linear_fc1.weight", when=_ungated),
        row(f"{ours}.down.weight", f"{theirs}.linear_fc2.weight"),
    )


def experts(their_norm: str) -> tuple[Row, ...]:
    """The router with its bias of selection, the stacked experts, and the shared ones, which are one."""
    return (
        *norm("norm", their_norm),
        row("block.router.weight", "mlp.router.weight"),
        row("block.router.selection_bias_E", "mlp.router.expert_bias"),
        row("block.experts.gate block.experts.up", f"{EXPERTS}.linear_fc1.weight", Concat(1)),
        row("block.experts.up", f"{EXPERTS}.linear_fc1.weight", when=_ungated),
        row("block.experts.down", f"{EXPERTS}.linear_fc2.weight"),
        *feed_forward("block.shared", "mlp.shared_experts"),
        row("block.shared_router.weight", "mlp.shared_experts.gate_weight"),
    )


def mamba2() -> tuple[Row, ...]:
    """In the file z, x, B, C and dt stand apart, as ours, so that ranks can share each."""
    return (
        *norm("norm", "mixer.in_proj.layer_norm_"),
        *(row(f"block.{each}.weight", f"mixer.in_proj.weight.{each}") for each in ("z", "x", "B", "C", "dt")),
        *(row(f"block.conv_{each}.weight", f"mixer.conv1d.weight.{each}", Unsqueeze(1)) for each in ("x", "B", "C")),
        *(row(f"block.conv_{each}.bias", f"mixer.conv1d.bias.{each}") for each in ("x", "B", "C")),
        *(row(f"block.dynamics.{each}", f"mixer.{each}") for each in ("dt_bias", "A_log", "D")),
        row("block.norm.weight", "mixer.norm.weight"),
        row("block.out.weight", "mixer.out_proj.weight"),
    )


def _ungated(settings) -> bool:
    return settings.activation != "swiglu"
