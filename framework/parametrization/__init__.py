"""Roles of parameters, and the tables over them: init and learning-rate factors."""

from framework.parametrization.init import initialize
from framework.parametrization.learning_rate import WITHOUT_WEIGHT_DECAY, learning_rate_factors, roles_of

__all__ = ["WITHOUT_WEIGHT_DECAY", "initialize", "learning_rate_factors", "roles_of"]
