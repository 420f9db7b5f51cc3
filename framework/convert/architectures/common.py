"""Lines that several architectures share."""

from __future__ import annotations

from typing import Any

from framework.convert.conditions import NORMALISED, alike, every, gates_of, holds, the_model
from framework.convert.fields import (
    Computed,
    Config,
    Entry,
    Facts,
    Fixed,
    Mismatch,
    Refused,
    Size,
    Written,
    flag,
    settings_of,
)
from framework.convert.table import Filler, Row, row
from framework.convert.transforms import UNSTACK, Chain, Concat, Unsqueeze

ENDS = (
    row("embedding.weight", "model.embed_tokens.weight"),
    row("final_norm.weight", "model.norm.weight"),
    row("unembedding.weight", "lm_head.weight"),
)
BACKBONE_ENDS = (
    row("embedding.weight", "backbone.embeddings.weight"),
    row("final_norm.weight", "backbone.norm_f.weight"),
    row("unembedding.weight", "lm_head.weight"),
)


def attention(norm: str = "input_layernorm", module: str = "self_attn") -> tuple[Row, ...]:
    """Biases and norms of queries and keys where the model has them."""
    projections = {"q": "q_proj", "k": "k_proj", "v": "v_proj", "out": "o_proj"}
    return (
        row("norm.weight", f"{norm}.weight"),
        *(row(f"block.{ours}.weight", f"{module}.{theirs}.weight") for ours, theirs in projections.items()),
        *(row(f"block.{each}.bias", f"{module}.{each}_proj.bias") for each in "qkv"),
        *(row(f"block.{each}_norm.weight", f"{module}.{each}_norm.weight") for each in "qk"),
    )


def dense(norm: str = "post_attention_layernorm", module: str = "mlp") -> tuple[Row, ...]:
    """A dense feed-forward block; `gate` where it has one."""
    return (row("norm.weight", f"{norm}.weight"), *feed_forward("block", module))


def feed_forward(ours: str, theirs: str) -> tuple[Row, ...]:
    """The matrices alone."""
    return tuple(row(f"{ours}.{name}.weight", f"{theirs}.{name}_proj.weight") for name in ("gate", "up", "down"))


def experts(
    norm: str = "post_attention_layernorm", module: str = "mlp", router: str = "gate",
    names: tuple[str, str, str] = ("gate_proj", "up_proj", "down_proj"),
) -> tuple[Row, ...]:
    """The router, and every expert by itself."""
    matrices = zip(("gate", "up", "down"), names, strict=True)
    return (
        row("norm.weight", f"{norm}.weight"),
        row("block.router.weight", f"{module}.{router}.weight"),
        *(row(f"block.experts.{ours}", f"{module}.experts.{{expert}}.{theirs}.weight", UNSTACK)
          for ours, theirs in matrices),
    )


def sigmoid_experts(norm: str, module: str) -> tuple[Row | Filler, ...]:
    """Experts with a bias that only selection sees, and shared ones, as in DeepSeek-V3 (arXiv 2412.19437)."""
    bias = f"{module}.gate.e_score_correction_bias"
    return (
        *experts(norm, module),
        row("block.router.selection_bias_E", bias),
        Filler(bias, lambda model, moe: (moe.num_experts,) if moe.selection_bias_rate == 0 else None),
        *feed_forward("block.shared", f"{module}.shared_experts"),
        *no_shared_expert(f"{module}.shared_experts"),
    )


def no_shared_expert(
    module: str, names: tuple[str, ...] = ("gate", "up", "down"), width: int = 0
) -> tuple[Filler, ...]:
    """Matrices of zeros, or of none at all, for a class that cannot be without a shared expert."""

    def shape(name: str) -> Any:
        return lambda model, moe: (
            None if moe.num_shared_experts else (model.d_model, width) if name == "down" else (width, model.d_model))

    return tuple(Filler(f"{module}.{name}_proj.weight", shape(name)) for name in names)


def mamba1(norm: str, module: str) -> tuple[Row, ...]:
    """Theirs stacks x and z, and the low-rank dt, B and C."""
    return (
        row("norm.weight", f"{norm}.weight"),
        row("block.x.weight block.z.weight", f"{module}.in_proj.weight", Concat()),
        row("block.conv.weight", f"{module}.conv1d.weight", Unsqueeze(1)),
        row("block.conv.bias", f"{module}.conv1d.bias"),
        row("block.dt_low.weight block.B.weight block.C.weight", f"{module}.x_proj.weight", Concat()),
        row("block.dt.weight", f"{module}.dt_proj.weight"),
        row("block.dynamics.dt_bias", f"{module}.dt_proj.bias"),
        row("block.dynamics.A_log", f"{module}.A_log"),
        row("block.dynamics.D", f"{module}.D"),
        row("block.out.weight", f"{module}.out_proj.weight"),
    )


def mamba2(norm: str, module: str) -> tuple[Row, ...]:
    """Theirs stacks z, x, B, C and dt, and has one convolution over x, B and C."""
    return (
        row("norm.weight", f"{norm}.weight"),
        row("block.z.weight block.x.weight block.B.weight block.C.weight block.dt.weight", f"{module}.in_proj.weight",
            Concat()),
        row("block.conv_x.weight block.conv_B.weight block.conv_C.weight", f"{module}.conv1d.weight",
            Chain(Concat(), Unsqueeze(1))),
        row("block.conv_x.bias block.conv_B.bias block.conv_C.bias", f"{module}.conv1d.bias", Concat()),
        row("block.dynamics.dt_bias", f"{module}.dt_bias"),
        row("block.dynamics.A_log", f"{module}.A_log"),
        row("block.dynamics.D", f"{module}.D"),
        row("block.norm.weight", f"{module}.norm.weight"),
        row("block.out.weight", f"{module}.out_proj.weight"),
    )


def whole(tied: bool = False) -> tuple[Entry, ...]:
    """What every config has. tied: the class's default. Both names of the dtype: transformers 4 reads the older."""
    return (
        Size("vocab_size", "vocab_size"),
        Size("hidden_size", "d_model"),
        Size("tie_word_embeddings", "tie_embeddings", tied),
        Refused("quantization_config"),
        Written(lambda facts: {
            "bos_token_id": None, "eos_token_id": facts.eod, "pad_token_id": None, "use_cache": True,
            "dtype": facts.dtype, "torch_dtype": facts.dtype, "max_position_embeddings": facts.seq_len,
        }),
    )


def heads(head_dim: int | None = None) -> tuple[Entry, ...]:
    """Sizes of attention. head_dim: the class's default; None: hidden_size / num_attention_heads."""
    return (
        Size("num_attention_heads", "attention.num_heads", unused=1),
        Size("num_key_value_heads", "attention.num_kv_heads", None, unused=1),
        Size("head_dim", "attention.head_dim", head_dim, unused=1),
    )


def silu(*no_bias: str) -> tuple[Entry, ...]:
    """Gated by silu, without the biases of these keys."""
    return (Fixed("hidden_act", "silu", allowed=("swish",)), *(Fixed(key, False) for key in no_bias))


def no_window() -> Entry:
    """All tokens are seen, by every layer."""

    def read(config: Config) -> dict[str, Any]:
        if config.get("use_sliding_window") or "sliding_attention" in (config.get("layer_types") or ()):
            raise Mismatch("use_sliding_window or layer_types ask for windows in some layers; allowed: full attention")
        return {"attention.window": None}

    return Computed(lambda facts: {"use_sliding_window": False, "sliding_window": None}, read)


def normalized(key: str = "norm_topk_prob", default: bool = False) -> Entry:
    """Whether gates of the chosen experts sum to one. default: the class's."""

    def write(facts: Facts) -> dict[str, Any]:
        settings = settings_of(facts.architecture, "moe")
        if settings is None:
            return {key: default}
        return {key: settings.normalize_top_k if settings.router == "sigmoid" else gates_of(settings) == NORMALISED}

    return Computed(write, lambda config: {"moe.normalize_top_k": flag(config, key, default)})


def dense_width(default: int) -> Entry:
    """Width of dense layers; of none where there are none, and then it is the active experts'."""

    def write(facts: Facts) -> dict[str, Any]:
        ffn, moe = (settings_of(facts.architecture, section) for section in ("ffn", "moe"))
        return {"intermediate_size": moe.d_expert * moe.top_k if ffn is None else ffn.d_ff}

    return Computed(write, lambda config: {"ffn.d_ff": config.get("intermediate_size", default)})


def shared_width(key: str, default: int, none: int = 0) -> Entry:
    """The width of all shared experts together, each as wide as the others. none: what stands for no shared expert."""

    def write(facts: Facts) -> dict[str, Any]:
        moe = settings_of(facts.architecture, "moe")
        return {key: moe.num_shared_experts * moe.d_expert or none}

    def read(config: Config) -> dict[str, Any]:
        width, expert = config.get(key, default), config["moe_intermediate_size"]
        if width == none:
            return {"moe.num_shared_experts": 0}
        if width % expert:
            raise Mismatch(f"{key} is {width}; allowed: a multiple of moe_intermediate_size {expert}")
        return {"moe.num_shared_experts": width // expert}

    return Computed(write, read)


def mamba2_sizes(heads: str, head_dim: str, groups: str, state: str, conv: str, expand: str, chunk: str) -> Entry:
    """Keys of a Mamba-2 block; every family has its own names. The inner width is heads * head_dim."""

    def write(facts: Facts) -> dict[str, Any]:
        mamba, d_model = settings_of(facts.architecture, "mamba"), facts.architecture.model.d_model
        if mamba is None:
            return {heads: 1, head_dim: d_model, groups: 1, expand: 1}
        inner = round(mamba.expand * d_model)
        return {
            heads: inner // mamba.head_dim, head_dim: mamba.head_dim, groups: mamba.num_groups, state: mamba.d_state,
            conv: mamba.d_conv, expand: int(mamba.expand), chunk: mamba.chunk_size,
        }

    def read(config: Config) -> dict[str, Any]:
        d_model, width = config["hidden_size"], config[head_dim]
        inner = config[heads] * width if width != "auto" else config[expand] * d_model
        return {
            "mamba.expand": inner / d_model, "mamba.head_dim": inner // config[heads],
            "mamba.num_groups": config[groups], "mamba.d_state": config.get(state, 128),
            "mamba.d_conv": config.get(conv, 4), "mamba.chunk_size": config.get(chunk, 256),
        }

    return Computed(write, read)


WIDEST_STEP = 3.4e38
"""Infinity cannot be told in JSON to every reader; no time step comes near this one."""


def unlimited_steps() -> tuple[Entry, ...]:
    """No time step is clamped. time_step_limit: infinity comes as a number, or as {"__float__": "Infinity"}."""

    def read(config: Config) -> dict[str, Any]:
        low, high = config.get("time_step_limit") or (0.0, WIDEST_STEP)
        high = float(high.get("__float__", "nan") if isinstance(high, dict) else high)
        if low != 0 or high < WIDEST_STEP:
            raise Mismatch(f"time_step_limit is {[low, high]}; allowed: no limit")
        return {}

    return (Computed(lambda facts: {"time_step_limit": [0.0, WIDEST_STEP]}, read),)


def groups_caution(architecture: Any) -> str | None:
    """Two readings of one checkpoint, which only a single group makes the same."""
    mamba = settings_of(architecture, "mamba")
    if mamba is None or mamba.num_groups == 1:
        return None
    return (f"mamba.num_groups is {mamba.num_groups}: transformers before 5 normalises over all groups together and "
            "computes something else")


SWIGLU = (*every("ffn", activation="swiglu"), *every("moe", activation="swiglu"))
NO_EXTRAS = every("moe", output_norm=False)
TRANSFORMER = (
    *the_model(norm="rmsnorm"), *SWIGLU, *NO_EXTRAS, *alike("attention"), *alike("ffn"), *alike("moe"),
)
"""Conditions of all models of attention with dense blocks or experts."""
SEVERAL_EXPERTS = holds(
    "experts", "model.moe.num_experts is 1 (allowed: 2 or more)", lambda _, moe: moe.num_experts > 1, "moe")
