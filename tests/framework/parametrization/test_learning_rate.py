"""Factors on the learning rate, by role and by family."""

import pytest

from framework.errors import UserError
from framework.parametrization import is_decayed, learning_rate_factors, roles_of
from framework.parametrization.roles import Declaration, Role
from framework.recipe.schema import RelativeLR

PRESENT = frozenset({Role.EMBEDDING, Role.EXPERT_UP, Role.EXPERT_DOWN, Role.SHARED_EXPERT_UP, Role.NORM, Role.ROUTER})


def test_neutral_without_rules():
    assert learning_rate_factors(PRESENT, {}) == {role: (1.0, 1.0) for role in PRESENT}


@pytest.mark.parametrize("order", [("expert", "expert_up"), ("expert_up", "expert")])
def test_a_role_beats_its_family(order):
    rules = {"expert": RelativeLR(start=0.3, end=1.125), "expert_up": RelativeLR(start=2.0)}
    factors = learning_rate_factors(PRESENT, {key: rules[key] for key in order})
    assert factors[Role.EXPERT_DOWN] == (0.3, 1.125)
    assert factors[Role.EXPERT_UP] == (2.0, 1.0)
    assert factors[Role.SHARED_EXPERT_UP] == factors[Role.ROUTER] == (1.0, 1.0)


@pytest.mark.parametrize("key, reason", [
    ("experts", "no such role"), ("ssm_A", "no parameter of this model"), ("attention", "no parameter of this model"),
])
def test_a_rule_without_match_lists_what_there_is(key, reason):
    with pytest.raises(UserError) as error:
        learning_rate_factors(PRESENT, {key: RelativeLR(start=2.0)})
    message = str(error.value)
    assert f"optim.relative_lr.{key}" in message and reason in message and "\n" not in message
    assert all(role in message for role in PRESENT) and "expert, shared_expert" in message


def test_vectors_do_not_decay():
    spared = {role for role in Role if not is_decayed(role)}
    assert spared == {Role.NORM, Role.BIAS, Role.SSM_A, Role.SSM_D}


def test_roles_of_a_model():
    from framework.model.linear import Linear

    layer = Linear(3, 2, Role.ROUTER, bias=True)
    assert roles_of(layer) == {Role.ROUTER, Role.BIAS}
    layer.declarations["weight"] = Declaration(Role.MIXING)
    assert roles_of(layer) == {Role.MIXING, Role.BIAS}
