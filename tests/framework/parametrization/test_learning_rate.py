"""Factors on the learning rate, by role and by family."""

import pytest

from framework.parametrization import is_decayed, learning_rate_factors
from framework.parametrization.roles import Role
from framework.recipe.schema import RelativeLR


def test_neutral_without_rules():
    assert learning_rate_factors({}) == {role: (1.0, 1.0) for role in Role}


@pytest.mark.parametrize("order", [("expert", "expert_up"), ("expert_up", "expert")])
def test_a_role_beats_its_family(order):
    rules = {"expert": RelativeLR(start=0.3, end=1.125), "expert_up": RelativeLR(start=2.0)}
    factors = learning_rate_factors({key: rules[key] for key in order})
    changed = {Role.EXPERT_GATE: (0.3, 1.125), Role.EXPERT_UP: (2.0, 1.0), Role.EXPERT_DOWN: (0.3, 1.125)}
    assert factors == {role: changed.get(role, (1.0, 1.0)) for role in Role}


def test_a_router_belongs_to_no_family():
    factors = learning_rate_factors({"shared_expert": RelativeLR(start=2.0)})
    assert factors[Role.SHARED_EXPERT_UP] == (2.0, 1.0)
    assert factors[Role.SHARED_EXPERT_ROUTER] == factors[Role.ROUTER] == (1.0, 1.0)


def test_vectors_do_not_decay():
    spared = {role for role in Role if not is_decayed(role)}
    assert spared == {Role.NORM, Role.BIAS, Role.SSM_A, Role.SSM_D}
