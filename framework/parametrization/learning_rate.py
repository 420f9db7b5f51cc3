"""Tables over roles that the optimizer reads: factors on the learning rate, and which parameters do not decay."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from framework.parametrization.roles import Role
from framework.recipe.parameters import family_of

if TYPE_CHECKING:
    from framework.recipe.schema import RelativeLR

WITHOUT_WEIGHT_DECAY = frozenset({Role.NORM, Role.BIAS, Role.SSM_A, Role.SSM_D})


def is_decayed(role: Role) -> bool:
    """Whether weight decay applies: to every matrix, embeddings included as in the papers; not to vectors, A and D."""
    return role not in WITHOUT_WEIGHT_DECAY


def learning_rate_factors(relative: Mapping[str, RelativeLR]) -> dict[Role, tuple[float, float]]:
    """Factors (on the peak, on the final learning rate) of every role (https://arxiv.org/abs/2507.03526).

    relative: rules by role or by family (`expert` is every expert_*); a role's own rule beats its family's, and a role
    without a rule has (1, 1). The second factor multiplies the schedule's base end, not the role's own start.
    A rule may name what the parameters here have not: a rank of a pipeline holds some roles only. That the whole model
    has it, the recipe's check has seen to.
    """
    rules = {role: relative.get(role) or relative.get(family_of(role)) for role in Role}
    return {role: (rule.start, rule.end) if rule else (1.0, 1.0) for role, rule in rules.items()}
