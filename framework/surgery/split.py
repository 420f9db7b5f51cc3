"""How the hidden units of a dense feed-forward block are laid out over shared and routed experts."""

from __future__ import annotations

from dataclasses import dataclass

from framework.errors import UserError
from framework.recipe.schema import FFN, MoE


@dataclass(frozen=True)
class Split:
    """The first num_shared_units go to the shared experts; the others make `granularity` shards of d_expert units, and
    each shard stands in `replicas` experts (https://arxiv.org/abs/2410.07524, section on granular upcycling).

    Expert i holds shard i % granularity of replica i // granularity.
    """

    num_shared_units: int
    d_expert: int
    granularity: int
    replicas: int

    @property
    def num_experts(self) -> int:
        return self.granularity * self.replicas

    @property
    def shared_units(self) -> range:
        """Hidden units of the dense block that its shared experts take."""
        return range(self.num_shared_units)

    def units(self, expert: int) -> range:
        """Hidden units of the dense block that a routed expert takes."""
        first = self.num_shared_units + expert % self.granularity * self.d_expert
        return range(first, first + self.d_expert)


def split_block(ffn: FFN, moe: MoE, method: str, place: str) -> Split:
    """Lay the units of a dense block out over those of a mixture, both with all sizes filled.

    place: what errors call the sublayer. Raises UserError where widths do not divide, or the method needs other ones.
    """
    if moe.activation != ffn.activation:
        raise UserError(f"{place}: moe.activation is {moe.activation} in the target, ffn.activation {ffn.activation} "
                        f"in the dense run; allowed: {ffn.activation}")
    shared = moe.num_shared_experts * moe.d_expert
    routed = ffn.d_ff - shared
    told = f"{ffn.d_ff} hidden units" + (f" less {shared} of shared experts" if shared else "")
    if routed <= 0 or routed % moe.d_expert:
        raise UserError(f"{place}: moe.d_expert={moe.d_expert} must divide the dense run's {told}; allowed: a divisor")
    granularity = routed // moe.d_expert
    if method != "granular" and granularity > 1:
        raise UserError(f"{place}: --method {method} makes experts of the dense run's {told}, the target has d_expert "
                        f"{moe.d_expert}; allowed: moe.d_expert={routed}, or --method granular")
    if moe.num_experts % granularity:
        raise UserError(f"{place}: moe.num_experts={moe.num_experts} is no multiple of the {granularity} shards of the "
                        f"dense run's {told}; allowed: a multiple")
    return Split(shared, moe.d_expert, granularity, moe.num_experts // granularity)
