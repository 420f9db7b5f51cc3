"""Which of two statements of one size holds: the later one.

A size can be stated in two ways: d_ff or multiplier; d_expert or granularity; num_experts or expansion_rate; top_k or
granularity. Levels order the statements: a base file, the files that extend it, the command line. A statement of a
later level replaces the other way of saying it, which then counts as not given:

    d_ff          <-> multiplier
    d_expert      <-> granularity
    num_experts   <-> expansion_rate; beside one, a later granularity or d_expert replaces num_experts too
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
    width = max(("granularity", "d_expert"), key=lambda name: _level(moe, level, name))
    if moe.expansion_rate and moe.num_experts and _level(moe, level, width) > level["num_experts"]:
        moe, replaced["num_experts"] = moe.model_copy(update={"num_experts": None}), width
    top_k = _later(moe, level, "top_k", "granularity")
    if "granularity" in top_k and moe.d_expert is None:
        d_expert = d_ff / moe.granularity
        if d_expert.denominator > 1:
            raise RecipeError("model.moe.granularity",
                              f"granularity {moe.granularity} does not divide d_ff {d_ff}; allowed: a divisor")
        moe = moe.model_copy(update={"d_expert": int(d_expert)})
        replaced["d_expert"] = "granularity"
    return _without(moe, top_k)[0], replaced | top_k


def _level(section: Section, level: Mapping[str, int], name: str) -> int:
    """How late a field was stated; -1 where it was not."""
    return -1 if getattr(section, name) is None else level[name]


def _later(section: Section, level: Mapping[str, int], first: str, second: str) -> Replaced:
    stated = getattr(section, first) is not None and getattr(section, second) is not None
    if not stated or level[first] == level[second]:
        return {}
    return {second: first} if level[first] > level[second] else {first: second}


def _without(section: Section, replaced: Replaced) -> tuple[Section, Replaced]:
    return section.model_copy(update=dict.fromkeys(replaced)), replaced
