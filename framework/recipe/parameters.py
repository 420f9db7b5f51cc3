"""The table of a model's parameters, from its architecture alone: counts, roles and FLOPs are sums over it.

Shapes: D model width, V vocabulary, H heads, G key-value heads or groups, P head width, F FFN width, E experts,
I inner width of an SSM, N its state, K taps of its convolution, R rank of dt.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import prod

from framework.recipe.architecture import Architecture, Sublayer
from framework.recipe.schema import FFN, Attention, Mamba, Model, MoE

EMBEDDING, ROUTER, NORM, BODY = "embedding", "router", "norm", "body"
FAMILIES = ("attention", "ffn", "expert", "shared_expert", "ssm")
"""Roles FAMILY_* that a rule may name together."""


@dataclass(frozen=True)
class Parameter:
    """One parameter of the model.

    part: embedding (the unembedding too), router, norm (its bias too) or body, as the papers count.
    active: how much of it one token uses on average, as a fraction (numerator, denominator).
    """

    name: str
    role: str
    shape: tuple[int, ...]
    part: str = BODY
    active: tuple[int, int] = (1, 1)

    @property
    def size(self) -> int:
        """How many numbers it holds."""
        return prod(self.shape)

    @property
    def active_size(self) -> int:
        """How many of them one token uses; top_k of num_experts for experts, whatever the router and the capacity."""
        numerator, denominator = self.active
        return self.size * numerator // denominator


def parameters(architecture: Architecture) -> list[Parameter]:
    """Every parameter, named as in the model; a tied unembedding does not stand twice."""
    model = architecture.model
    vocabulary_shape = (model.vocab_size, model.d_model)
    rows = [Parameter("embedding.weight", "embedding", vocabulary_shape, EMBEDDING)]
    for index, layer in enumerate(architecture.layers):
        for branch, sublayer in enumerate(layer.branches):
            inside = f"branches.{branch}." if len(layer.branches) > 1 else ""
            prefix = f"layers.{index}.{inside}"
            rows += _norm(model, f"{prefix}norm")
            rows += [replace(row, name=f"{prefix}block.{row.name}") for row in _block(model, sublayer)]
    rows += _norm(model, "final_norm")
    if not model.tie_embeddings:
        rows.append(Parameter("unembedding.weight", "unembedding", vocabulary_shape, EMBEDDING))
    return rows


def family_of(role: str) -> str | None:
    """The family that a role belongs to. A router belongs to none, that of shared experts neither."""
    if role == "shared_expert_router":
        return None
    return next((family for family in FAMILIES if role.startswith(f"{family}_")), None)


def _norm(model: Model, name: str) -> list[Parameter]:
    return _layer_norm(name, model.d_model) if model.norm == "layernorm" else [_rms_norm(name, model.d_model)]


def _rms_norm(name: str, width: int) -> Parameter:
    return Parameter(f"{name}.weight", "norm", (width,), NORM)


def _layer_norm(name: str, width: int) -> list[Parameter]:
    return [Parameter(f"{name}.weight", "norm", (width,), NORM), Parameter(f"{name}.bias", "bias", (width,), NORM)]


def _block(model: Model, sublayer: Sublayer) -> Iterator[Parameter]:
    rows = {"attention": _attention, "ffn": _ffn, "moe": _moe, "mamba1": _mamba1, "mamba2": _mamba2}[sublayer.kind]
    return rows(model.d_model, sublayer.settings)


def _attention(D: int, settings: Attention) -> Iterator[Parameter]:
    P, query_width = settings.head_dim, settings.num_heads * settings.head_dim
    kv_width = settings.num_kv_heads * P
    for name, width in (("q", query_width), ("k", kv_width), ("v", kv_width)):
        yield Parameter(f"{name}.weight", f"attention_{name}", (width, D))
        if settings.qkv_bias:
            yield Parameter(f"{name}.bias", "bias", (width,))
    yield Parameter("out.weight", "attention_out", (D, query_width))
    if settings.qk_norm != "none":
        per_head = settings.qk_norm == "head"
        yield _rms_norm("q_norm", P if per_head else query_width)
        yield _rms_norm("k_norm", P if per_head else kv_width)


def _ffn(D: int, settings: FFN) -> Iterator[Parameter]:
    return _feed_forward("", "ffn", D, settings.d_ff, settings.activation)


def _feed_forward(prefix: str, family: str, D: int, F: int, activation: str) -> Iterator[Parameter]:
    if activation == "swiglu":
        yield Parameter(f"{prefix}gate.weight", f"{family}_gate", (F, D))
    yield Parameter(f"{prefix}up.weight", f"{family}_up", (F, D))
    yield Parameter(f"{prefix}down.weight", f"{family}_down", (D, F))


def _moe(D: int, settings: MoE) -> Iterator[Parameter]:
    E, F, active = settings.num_experts, settings.d_expert, (settings.top_k, settings.num_experts)
    yield Parameter("router.weight", "router", (E, D), ROUTER)
    if settings.activation == "swiglu":
        yield Parameter("experts.gate", "expert_gate", (E, F, D), active=active)
    yield Parameter("experts.up", "expert_up", (E, F, D), active=active)
    yield Parameter("experts.down", "expert_down", (E, D, F), active=active)
    if settings.num_shared_experts:
        width = settings.num_shared_experts * F
        yield from _feed_forward("shared.", "shared_expert", D, width, settings.activation)
    if settings.shared_expert_router:
        yield Parameter("shared_router.weight", "shared_expert_router", (1, D), ROUTER)
    if settings.output_norm:
        yield from _layer_norm("output_norm", D)


def _mamba1(D: int, settings: Mamba) -> Iterator[Parameter]:
    I, N, R = inner_width(D, settings), settings.d_state, settings.dt_rank  # noqa: E741
    for name, role, shape in (
        ("z", "ssm_z", (I, D)), ("x", "ssm_x", (I, D)), ("B", "ssm_B", (N, I)), ("C", "ssm_C", (N, I)),
        ("dt_low", "ssm_dt", (R, I)), ("dt", "ssm_dt", (I, R)), ("out", "ssm_out", (D, I)),
    ):
        yield Parameter(f"{name}.weight", role, shape)
    yield from _convolution("conv", I, settings.d_conv)
    yield from _dynamics((I, N))
    if settings.inner_norms:
        yield from (_rms_norm(f"{name}_norm", width) for name, width in (("dt", R), ("B", N), ("C", N)))


def _mamba2(D: int, settings: Mamba) -> Iterator[Parameter]:
    I = inner_width(D, settings)  # noqa: E741
    H, GN = I // settings.head_dim, settings.num_groups * settings.d_state
    for name, role, width in (
        ("z", "ssm_z", I), ("x", "ssm_x", I), ("B", "ssm_B", GN), ("C", "ssm_C", GN), ("dt", "ssm_dt", H),
    ):
        yield Parameter(f"{name}.weight", role, (width, D))
    for name, width in (("x", I), ("B", GN), ("C", GN)):
        yield from _convolution(f"conv_{name}", width, settings.d_conv)
    yield from _dynamics((H,))
    yield _rms_norm("norm", I)
    yield Parameter("out.weight", "ssm_out", (D, I))


def _convolution(name: str, channels: int, K: int) -> Iterator[Parameter]:
    yield Parameter(f"{name}.weight", "ssm_conv", (channels, K))
    yield Parameter(f"{name}.bias", "bias", (channels,))


def _dynamics(rate_shape: tuple[int, ...]) -> Iterator[Parameter]:
    yield Parameter("dynamics.A_log", "ssm_A", rate_shape)
    yield Parameter("dynamics.D", "ssm_D", rate_shape[:1])
    yield Parameter("dynamics.dt_bias", "bias", rate_shape[:1])


def inner_width(d_model: int, settings: Mamba) -> int:
    """I: channels of a state-space block."""
    return round(settings.expand * d_model)
