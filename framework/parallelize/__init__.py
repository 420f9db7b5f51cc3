"""Applies `parallel` to a language model from outside: one file per axis, one function that reads top to bottom."""

from framework.parallelize.parallelize import parallelize
from framework.parallelize.zero import prepare_for_zero

__all__ = ["parallelize", "prepare_for_zero"]
