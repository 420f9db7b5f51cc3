"""The argument list that Megatron-LM keeps in a checkpoint, written from an architecture and read back.

`--use-checkpoint-args` takes most of it from there; the names are those of megatron/training/arguments.py. Sizes that
shapes tell are written, and read from the shapes.
"""

from __future__ import annotations

from typing import Any

from framework.convert.conditions import NORMALISED, SIGMOID, gates_of
from framework.convert.fields import Computed, Config, Entry, Facts, Fixed, Mismatch, Refused, Size, settings_of
from framework.recipe.errors import shorten

LLAMA3 = {"low_frequency_factor": 1.0, "high_frequency_factor": 4.0, "original_seq_len": 8192}
"""What --use-rope-scaling has no arguments for (its rope_utils)."""
ALWAYS = {"tensor_model_parallel_size": 1, "pipeline_model_parallel_size": 1, "hidden_dropout": 0.0,
          "attention_dropout": 0.0, "ckpt_format": "torch_dist"}


def common() -> tuple[Entry, ...]:
    """What both models have."""
    return (
        Computed(lambda facts: {**ALWAYS, "seq_length": facts.seq_len, "max_position_embeddings": facts.seq_len},
                 lambda config: {}),
        Size("hidden_size", "d_model"), Size("padded_vocab_size", "vocab_size"),
        Size("norm_epsilon layernorm_epsilon", "norm_eps", 1e-5),
        Computed(lambda facts: {"untie_embeddings_and_output_weights": not facts.architecture.model.tie_embeddings},
                 lambda config: {"tie_embeddings": not config.get("untie_embeddings_and_output_weights", False)}),
        Computed(_write_norm, _read_norm), Computed(_write_activation, _read_activation),
        Computed(_write_heads, _read_heads), Computed(_write_rope, _read_rope),
        Computed(_write_widths, lambda config: {}), Computed(_write_router, _read_router),
        Fixed("add_bias_linear", False, default=True),
        Refused("multi_latent_attention mtp_num_layers moe_latent_size heterogeneous_layers_config_path window_size "
                "heterogeneous_layers_config_encoded_json apply_layernorm_1p rotary_interleaved quick_geglu use_mup "
                "openai_gelu moe_router_group_topk qk_l2_norm attention_output_gate glu_linear_offset no_rope_freq "
                "experimental_attention_variant apply_residual_connection_post_layernorm moe_apply_probs_on_input "
                "linear_attention_freq activation_func_clamp_value"),
        Fixed("softmax_type", "vanilla"),
    )


def mamba_sizes() -> Entry:
    """Of Mamba-2 blocks; their convolutions are four wide, their scan's chunk changes nothing."""

    def write(facts: Facts) -> dict[str, Any]:
        mamba = settings_of(facts.architecture, "mamba")
        if mamba is None:
            return {}
        heads = round(mamba.expand * facts.architecture.model.d_model) // mamba.head_dim
        return {"mamba_state_dim": mamba.d_state, "mamba_head_dim": mamba.head_dim, "mamba_num_heads": heads,
                "mamba_num_groups": mamba.num_groups}

    def read(config: Config) -> dict[str, Any]:
        return {f"mamba.{ours}": config[theirs] for ours, theirs in (
            ("d_state", "mamba_state_dim"), ("head_dim", "mamba_head_dim"), ("num_groups", "mamba_num_groups"),
        ) if config.get(theirs) is not None}

    return Computed(write, read)


def as_flags(written: dict[str, Any]) -> list[str]:
    """The same on a command line of Megatron-LM: one text for each argument."""
    flags = []
    for name, value in written.items():
        flag = f"--{name.replace('_', '-')}"
        if value is False and name in NEGATED:
            flags.append(NEGATED[name])
        elif value in (None, False) or name in NO_FLAG:
            continue
        elif value is True:
            flags.append(flag)
        elif isinstance(value, list):
            flags.append(f"{flag} {' '.join(value)}" if isinstance(value[0], str) else f"{flag} '{value}'")
        else:
            flags.append(f"{flag} {value}")
    return flags


NEGATED = {"add_bias_linear": "--disable-bias-linear", "bias_gelu_fusion": "--no-bias-gelu-fusion"}
NO_FLAG = frozenset({"padded_vocab_size", "layernorm_epsilon", "ckpt_format", "tensor_model_parallel_size",
                     "pipeline_model_parallel_size", "is_hybrid_model", "softmax_type"})
"""Derived there, or right as they are by default."""


def _write_norm(facts: Facts) -> dict[str, Any]:
    return {"normalization": "LayerNorm" if facts.architecture.model.norm == "layernorm" else "RMSNorm"}


def _read_norm(config: Config) -> dict[str, Any]:
    given = config.get("normalization") or "LayerNorm"
    if given not in ("LayerNorm", "RMSNorm"):
        raise Mismatch(f"normalization is {shorten(given)}; allowed: LayerNorm, RMSNorm")
    return {"norm": given.lower()}


def _write_activation(facts: Facts) -> dict[str, Any]:
    used = {settings.activation for section in ("ffn", "moe")
            if (settings := settings_of(facts.architecture, section)) is not None}
    written = {"swiglu": "swiglu" in used, "squared_relu": "relu2" in used}
    return written | ({"bias_gelu_fusion": False} if "gelu" in used else {})  # the fused one wants a bias


def _read_activation(config: Config) -> dict[str, Any]:
    activation = "swiglu" if config.get("swiglu") else "relu2" if config.get("squared_relu") else "gelu"
    return {"ffn.activation": activation, "moe.activation": activation}


def _write_heads(facts: Facts) -> dict[str, Any]:
    settings = settings_of(facts.architecture, "attention")
    if settings is None:  # required all the same
        return {"num_attention_heads": 1, "group_query_attention": False, "qk_layernorm": False, "add_qkv_bias": False}
    return {
        "num_attention_heads": settings.num_heads, "num_query_groups": settings.num_kv_heads,
        "group_query_attention": settings.num_kv_heads != settings.num_heads, "kv_channels": settings.head_dim,
        "qk_layernorm": settings.qk_norm == "head", "add_qkv_bias": settings.qkv_bias,
    }


def _read_heads(config: Config) -> dict[str, Any]:
    return {"attention.num_heads": config["num_attention_heads"]}


def _write_rope(facts: Facts) -> dict[str, Any]:
    settings = settings_of(facts.architecture, "attention")
    if settings is None or not settings.rope:
        return {"position_embedding_type": "none"}
    written = {"position_embedding_type": "rope", "rotary_base": int(settings.rope_base),
               "rotary_percent": settings.rope_fraction, "rotary_interleaved": False}
    if settings.rope_scaling is not None:
        written |= {"use_rope_scaling": True, "rope_scaling_factor": settings.rope_scaling.factor}
    return written


def _read_rope(config: Config) -> dict[str, Any]:
    kind = config.get("position_embedding_type") or "learned_absolute"
    if config.get("use_rotary_position_embeddings"):
        kind = "rope"
    if kind not in ("rope", "none"):
        raise Mismatch(f"position_embedding_type is {shorten(kind)}; allowed: rope, none")
    fields: dict[str, Any] = {
        "attention.rope": kind == "rope", "attention.rope_base": float(config.get("rotary_base") or 10000),
        "attention.rope_fraction": config.get("rotary_percent") or 1.0}
    if config.get("use_rope_scaling"):
        fields["attention.rope_scaling"] = {"factor": config.get("rope_scaling_factor") or 8.0, **LLAMA3}
    return fields


def _write_widths(facts: Facts) -> dict[str, Any]:
    ffn, moe = (settings_of(facts.architecture, section) for section in ("ffn", "moe"))
    if moe is None:
        return {"ffn_hidden_size": 4 * facts.architecture.model.d_model if ffn is None else ffn.d_ff}
    return {
        "ffn_hidden_size": moe.d_expert * moe.top_k if ffn is None else ffn.d_ff,
        "num_experts": moe.num_experts, "moe_ffn_hidden_size": moe.d_expert,
        "moe_shared_expert_intermediate_size": moe.num_shared_experts * moe.d_expert or None,
        "moe_shared_expert_gate": moe.shared_expert_router,
    }


def _write_router(facts: Facts) -> dict[str, Any]:
    moe = settings_of(facts.architecture, "moe")
    if moe is None:
        return {}
    return {
        "moe_router_topk": moe.top_k, "moe_router_score_function": "sigmoid" if gates_of(moe) == SIGMOID else "softmax",
        "moe_router_pre_softmax": gates_of(moe) not in (SIGMOID, NORMALISED), "moe_router_dtype": "fp32",
        "moe_router_topk_scaling_factor": None if moe.gate_scale == 1.0 else moe.gate_scale,
        "moe_router_enable_expert_bias": moe.selection_bias_rate > 0,
        "moe_router_bias_update_rate": moe.selection_bias_rate or None,
    }


def _read_router(config: Config) -> dict[str, Any]:
    if not config.get("num_experts"):
        return {}
    top_k, function = config.get("moe_router_topk") or 2, config.get("moe_router_score_function") or "softmax"
    if function not in ("softmax", "sigmoid"):
        raise Mismatch(f"moe_router_score_function is {shorten(function)}; allowed: softmax, sigmoid")
    if config.get("moe_router_load_balancing_type") == "sinkhorn":
        raise Mismatch("moe_router_load_balancing_type is sinkhorn; allowed: another one")
    sigmoid = function == "sigmoid"
    fields = {
        "moe.top_k": top_k, "moe.router": "sigmoid" if sigmoid else "softmax_topk",
        "moe.normalize_top_k": top_k > 1 if sigmoid else not config.get("moe_router_pre_softmax", False),
        "moe.gate_scale": config.get("moe_router_topk_scaling_factor") or 1.0,
    }
    if config.get("moe_router_enable_expert_bias"):
        fields["moe.selection_bias_rate"] = config.get("moe_router_bias_update_rate") or 1e-3
    return fields
