"""Tables over roles that the optimizer reads: factors on the learning rate, and which parameters do not decay."""

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING

from torch import nn

from framework.errors import UserError
from framework.parametrization.roles import FAMILIES, Role, declarations

if TYPE_CHECKING:
    from framework.recipe.schema import RelativeLR

WITHOUT_WEIGHT_DECAY = frozenset({Role.NORM, Role.BIAS, Role.SSM_A, Role.SSM_D})


def is_decayed(role: Role) -> bool:
    """Whether weight decay applies: to every matrix, embeddings included as in the papers; not to vectors, A and D."""
    return role not in WITHOUT_WEIGHT_DECAY


def roles_of(model: nn.Module) -> frozenset[Role]:
    """The roles that a model's parameters have."""
    return frozenset(declaration.role for _, _, _, declaration in declarations(model))


def learning_rate_factors(
    present: Collection[Role], relative: Mapping[str, "RelativeLR"]
) -> dict[Role, tuple[float, float]]:
    """Factors (on the peak, on the final learning rate) of each present role (https://arxiv.org/abs/2507.03526).

    present: the roles of the whole model. relative: rules by role or by family (`expert` is every expert_*); a role's
    own rule beats its family's, and a role without a rule has (1, 1). The second factor multiplies the schedule's base
    end, not the role's own start.
    Raises UserError where a rule names nothing, or nothing that the model has.
    """
    for key in relative:
        if not present_roles(key, present):
            known = key in FAMILIES or key in list(Role)
            raise UserError(
                f"optim.relative_lr.{key}: {'no parameter of this model has that role' if known else 'no such role'}; "
                f"allowed: {', '.join(sorted(present))}; or families {', '.join(_families(present))}"
            )
    factors = {role: (1.0, 1.0) for role in present}
    for key in sorted(relative, key=lambda key: key not in FAMILIES):
        for role in present_roles(key, present):
            factors[role] = (relative[key].start, relative[key].end)
    return factors


def present_roles(key: str, present: Collection[Role]) -> list[Role]:
    """The present roles that a role's or family's name stands for, in the order of `Role`."""
    return [role for role in Role if role in present and (role == key or role in FAMILIES.get(key, ()))]


def _families(present: Collection[Role]) -> list[str]:
    return [family for family in FAMILIES if present_roles(family, present)]
