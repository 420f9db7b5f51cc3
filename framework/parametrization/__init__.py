"""Roles of parameters, and the tables over them: init, learning-rate factors, weight decay."""

from framework.parametrization.init import initialize
from framework.parametrization.learning_rate import is_decayed, learning_rate_factors
from framework.parametrization.widths import STANDARD, Widths, widths

__all__ = ["STANDARD", "Widths", "initialize", "is_decayed", "learning_rate_factors", "widths"]
