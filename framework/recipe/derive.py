"""The sizes that follow from others, and the sizes that cannot be.

The counts of a mixture of experts follow from rates: num_experts = expansion_rate * granularity, top_k = granularity,
d_expert = d_ff / granularity. Where d_expert is given instead, granularity is d_ff / d_expert; with neither it is 1.
"""

from __future__ import annotations

from fractions import Fraction
from math import ceil

from framework.recipe.errors import RecipeError
from framework.recipe.schema import FFN, Attention, Mamba, Model, MoE, Section
from framework.recipe.settle import settle_ffn, settle_moe
from framework.recipe.validate import validate

KINDS = {"attention": "attention", "ffn": "ffn", "moe": "moe", "mamba1": "mamba", "mamba2": "mamba"}
DEFAULT_MULTIPLIER = 4.0
ROUNDING = Fraction(1, 10**12)
"""A quotient written out as a decimal number, times its divisor, is that near to the whole number."""


def section_of(kind: str) -> str:
    """The name of the model's section that holds the settings of a kind of sublayer."""
    return KINDS[kind]


def variant_settings(model: Model, letter: str) -> Section:
    """The settings of a further letter: the model's section of its kind, with the variant's own fields over it.

    As between files, a count that the variant states replaces the rate that it would follow from, and the reverse.
    """
    variant = model.sublayers[letter]
    base = getattr(model, section_of(variant.kind))
    own = variant.model_extra or {}
    merged = validate(type(base), base.model_dump() | own, f"model.sublayers.{letter}")
    level = {name: int(own.get(name) is not None) for name in type(base).model_fields}
    if isinstance(merged, FFN):
        return settle_ffn(merged, level)[0]
    return settle_moe(merged, level, reference_d_ff(model))[0] if isinstance(merged, MoE) else merged


def derive(model: Model, kind: str, settings: Section, key: str) -> Section:
    """The settings with every derived field filled; `key` is the dotted key that errors name."""
    if kind == "attention":
        return _attention(model, settings, key)
    if kind == "ffn":
        return settings.model_copy(update=_ffn_sizes(model, settings, key))
    return _moe(model, settings, key) if kind == "moe" else _mamba(model, kind, settings, key)


def reference_d_ff(model: Model) -> Fraction:
    """Width of the dense FFN that experts are a fraction of; whole where the recipe is possible."""
    if model.ffn.d_ff is not None:
        return Fraction(model.ffn.d_ff)
    return _exact(model.ffn.multiplier or DEFAULT_MULTIPLIER) * model.d_model


def _exact(number: float) -> Fraction:
    """The simple fraction that a decimal such as 2.6667 or 0.1 stands for, as it is written."""
    return Fraction(repr(number))


def _require(condition: bool, keys: str | tuple[str, ...], text: str) -> None:
    if not condition:
        raise RecipeError(keys, text)


def _attention(model: Model, settings: Attention, key: str) -> Attention:
    heads, kv_heads = settings.num_heads, settings.num_kv_heads or settings.num_heads
    if settings.head_dim is None:
        _require(model.d_model % heads == 0, (f"{key}.num_heads", "model.d_model"),
                 f"{heads} heads do not divide d_model {model.d_model}; allowed: a divisor, or head_dim given")
    head_dim = settings.head_dim or model.d_model // heads
    _require(heads % kv_heads == 0, (f"{key}.num_kv_heads", f"{key}.num_heads"),
             f"{kv_heads} key-value heads do not divide {heads} heads; allowed: a divisor")
    rotated = _exact(settings.rope_fraction) * head_dim
    _require(not settings.rope or (rotated.denominator == 1 and rotated.numerator % 2 == 0),
             (f"{key}.rope_fraction", f"{key}.head_dim"),
             f"{settings.rope_fraction} of head_dim {head_dim} rotates {float(rotated):g} dims; "
             "allowed: an even number")
    scaling = settings.rope_scaling
    _require(scaling is None or scaling.low_frequency_factor < scaling.high_frequency_factor,
             f"{key}.rope_scaling", "low_frequency_factor is not below high_frequency_factor; allowed: below")
    return settings.model_copy(update={"num_kv_heads": kv_heads, "head_dim": head_dim})


def _ffn_sizes(model: Model, settings: FFN, key: str) -> dict[str, object]:
    stated = settings.multiplier is not None
    width = _exact(settings.multiplier if stated else DEFAULT_MULTIPLIER) * model.d_model
    if settings.d_ff is None:
        _require(width.denominator == 1, (f"{key}.multiplier", "model.d_model"),
                 f"{settings.multiplier} * {model.d_model} is {float(width):g}; allowed: a whole d_ff")
        return {"d_ff": int(width), "multiplier": float(width / model.d_model)}
    _require(not stated or width == settings.d_ff, (f"{key}.d_ff", f"{key}.multiplier"),
             f"d_ff {settings.d_ff} contradicts multiplier {settings.multiplier} (d_ff = multiplier * d_model = "
             f"{float(width):g}); allowed: one of them")
    return {"d_ff": settings.d_ff, "multiplier": settings.d_ff / model.d_model}


def _moe(model: Model, settings: MoE, key: str) -> MoE:
    d_ff = _ffn_sizes(model, model.ffn, "model.ffn")["d_ff"]
    granularity = _granularity(settings, d_ff, key)
    d_expert = settings.d_expert or int(d_ff / granularity)
    top_k = _top_k(settings, granularity, key)
    num_experts = _num_experts(settings, granularity, key)
    _require(top_k <= num_experts, (f"{key}.top_k", f"{key}.num_experts"),
             f"top_k {top_k} is above num_experts {num_experts}; allowed: up to {num_experts}")
    _require(settings.num_shared_experts > 0 or not settings.shared_expert_router, f"{key}.shared_expert_router",
             "given True without shared experts; allowed: with num_shared_experts above 0")
    _require(settings.router != "expert_choice" or settings.selection_bias_rate == 0, f"{key}.selection_bias_rate",
             "given with router expert_choice, whose experts are balanced; allowed: 0")
    expansion_rate = Fraction(num_experts * d_expert, d_ff)
    return settings.model_copy(update={
        "num_experts": num_experts, "top_k": top_k, "d_expert": d_expert,
        "granularity": _whole(granularity), "expansion_rate": _whole(expansion_rate),
    })


def _granularity(settings: MoE, d_ff: int, key: str) -> Fraction:
    if settings.granularity is None:
        return Fraction(d_ff, settings.d_expert) if settings.d_expert else Fraction(1)
    granularity = settings.granularity
    _require(d_ff % granularity == 0, (f"{key}.granularity",),
             f"granularity {granularity} does not divide d_ff {d_ff}; allowed: a divisor")
    _require(settings.d_expert in (None, d_ff // granularity), (f"{key}.d_expert", f"{key}.granularity"),
             f"d_expert {settings.d_expert} contradicts granularity {granularity} (d_expert = d_ff / granularity = "
             f"{d_ff // granularity}); allowed: one of them")
    return Fraction(granularity)


def _top_k(settings: MoE, granularity: Fraction, key: str) -> int:
    if settings.top_k is None:
        _require(granularity.denominator == 1, (f"{key}.d_expert",),
                 f"d_ff / d_expert is {float(granularity):g}, not whole, and would be top_k; allowed: top_k given")
        return int(granularity)
    _require(settings.granularity in (None, settings.top_k), (f"{key}.top_k", f"{key}.granularity"),
             f"top_k {settings.top_k} contradicts granularity {settings.granularity} (top_k = granularity); "
             "allowed: one of them, with d_expert or granularity for the width")
    return settings.top_k


def _num_experts(settings: MoE, granularity: Fraction, key: str) -> int:
    if settings.expansion_rate is None:
        _require(settings.num_experts is not None, f"{key}.num_experts",
                 "missing; allowed: num_experts, or expansion_rate (num_experts = expansion_rate * granularity)")
        return settings.num_experts
    product = settings.expansion_rate * granularity
    _require(product.denominator == 1, (f"{key}.expansion_rate", f"{key}.d_expert"),
             f"expansion_rate {settings.expansion_rate} * d_ff / d_expert is {float(product):g}; "
             "allowed: a whole number of experts")
    _require(settings.num_experts in (None, product), (f"{key}.num_experts", f"{key}.expansion_rate"),
             f"num_experts {settings.num_experts} contradicts expansion_rate {settings.expansion_rate} "
             f"(num_experts = expansion_rate * granularity = {product}); allowed: one of them")
    return int(product)


def _whole(number: Fraction) -> int | None:
    return int(number) if number.denominator == 1 else None


def _mamba(model: Model, kind: str, settings: Mamba, key: str) -> Mamba:
    product = _exact(settings.expand) * model.d_model
    inner = round(product)
    _require(abs(product - inner) < ROUNDING * inner, (f"{key}.expand", "model.d_model"),
             f"{settings.expand} * {model.d_model} is {float(product):g}; allowed: a whole inner width")
    if kind == "mamba1":
        return settings.model_copy(update={
            "d_state": settings.d_state or 16, "dt_rank": settings.dt_rank or ceil(model.d_model / 16)})
    _require(inner % settings.head_dim == 0, (f"{key}.head_dim", f"{key}.expand"),
             f"head_dim {settings.head_dim} does not divide the inner width {inner} (expand * d_model); "
             "allowed: a divisor")
    num_heads = inner // settings.head_dim
    _require(num_heads % settings.num_groups == 0, f"{key}.num_groups",
             f"{settings.num_groups} groups do not divide {num_heads} heads (expand * d_model / head_dim); "
             "allowed: a divisor")
    return settings.model_copy(update={"d_state": settings.d_state or 128})
