"""Which of two statements of one size holds: the later one.

A size can be stated in two ways: d_ff or multiplier; d_expert or granularity; num_experts or expansion_rate; top_k or
granularity. Levels order the statements: a base file, the files that extend it, the command line. A statement of a
later level replaces the other way of saying it, which then counts as not given:

    d_ff          <-> multiplier
    d_expert      <-> granularity
    num_experts   <-> expansion_rate; a later granularity too replaces num_experts where there is an expansion_rate
    top_k         <-> granularity; a later top_k leaves the experts as wide as they were

Two statements of one level both stay, and must agree; `derive` checks that.
"""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction

from framework.recipe.errors import RecipeError
from framework.recipe.schema import FFN, MoE, Section

Replaced = dict[str, str]
"""Field that lost -> field that replaced it; or field that got a value -> field that it follows from."""


def settle_ffn(ffn: FFN, level: Mapping[str, int]) -> tuple[FFN, Replaced]:
    """The section with d_ff or multiplier dropped, whichever was stated earlier."""
    return _without(ffn, _later(ffn, level, "d_ff", "multiplier"))


def settle_moe(moe: MoE, level: Mapping[str, int], d_ff: Fraction) -> tuple[MoE, Replaced]:
    """The section with the earlier of each two statements dropped. Raises RecipeError where d_expert is not whole."""
    replaced = _later(moe, level, "num_experts", "expansion_rate")
    replaced |= _later(moe, level, "d_expert", "granularity")
    moe, _ = _without(moe, replaced)
    top_k = _later(moe, level, "top_k", "granularity")
    if "granularity" in top_k and moe.d_expert is None:
        width = d_ff / moe.granularity
        if width.denominator > 1:
            raise RecipeError("model.moe.granularity",
                              f"granularity {moe.granularity} does not divide d_ff {d_ff}; allowed: a divisor")
        moe = moe.model_copy(update={"d_expert": int(width)})
        replaced["d_expert"] = "granularity"
    moe, _ = _without(moe, top_k)
    if moe.expansion_rate and moe.num_experts:
        rate = max((level[name] for name in ("granularity", "d_expert") if getattr(moe, name) is not None), default=-1)
        if rate > level["num_experts"]:
            moe, replaced["num_experts"] = moe.model_copy(update={"num_experts": None}), "granularity"
    return moe, replaced | top_k


def _later(section: Section, level: Mapping[str, int], first: str, second: str) -> Replaced:
    stated = getattr(section, first) is not None and getattr(section, second) is not None
    if not stated or level[first] == level[second]:
        return {}
    return {second: first} if level[first] > level[second] else {first: second}


def _without(section: Section, replaced: Replaced) -> tuple[Section, Replaced]:
    return section.model_copy(update=dict.fromkeys(replaced)), replaced
