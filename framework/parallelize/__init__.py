"""Applies `parallel` to a model: one file per axis, and one function that reads top to bottom."""
