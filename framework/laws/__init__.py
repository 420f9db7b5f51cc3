"""Scaling laws as pure functions of plain numbers: predict, optimum, compare, draw, fit to runs, write a recipe.

One file a law: its published coefficients, what N and D count, where it was fitted, a loss. Never imports torch.
"""

from framework.laws.ask import Answer, optimum, predict
from framework.laws.coefficients import Fitted, read_coefficients, write_coefficients
from framework.laws.compare import Comparison, compare
from framework.laws.registry import LAWS, find_law

__all__ = [
    "Answer", "Comparison", "Fitted", "LAWS", "compare", "find_law", "optimum", "predict", "read_coefficients",
    "write_coefficients",
]
