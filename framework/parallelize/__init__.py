"""Applies `parallel` to a language model from outside: one file per axis, one function that reads top to bottom."""

from framework.parallelize.parallelize import parallelize

__all__ = ["parallelize"]
