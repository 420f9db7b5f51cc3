"""Shapes of the joint law's models: d_model = 64 blocks, SwiGLU with d_ff = 3 d_model, embeddings of their own."""

from __future__ import annotations

VOCABULARY = 50257


def num_params_active(d_model: float, vocab_size: float = VOCABULARY) -> float:
    """2 d_model V + 13 blocks d_model^2, with blocks = d_model / 64."""
    return 2 * d_model * vocab_size + 13 * d_model**3 / 64


def num_params_total(d_model: float, num_experts: float, vocab_size: float = VOCABULARY) -> float:
    """2 d_model V + (4 + 9 E) blocks d_model^2."""
    return 2 * d_model * vocab_size + (4 + 9 * num_experts) * d_model**3 / 64


def d_model_of(active: float, vocab_size: float = VOCABULARY) -> float:
    """The width whose model has so many active parameters, as a real number."""
    return positive_root(13 / 64, 0, 2 * vocab_size, active)


def positive_root(cubic: float, square: float, linear: float, value: float) -> float:
    """The positive x of cubic x^3 + square x^2 + linear x = value, by Newton's method from above.

    The polynomial is convex and rises for x > 0, so that every step stays above the root and goes towards it.
    """
    x = (value / cubic) ** (1 / 3)
    while True:
        slope = 3 * cubic * x * x + 2 * square * x + linear
        step = (((cubic * x + square) * x + linear) * x - value) / slope
        if step <= 1e-13 * x:
            return x
        x -= step
