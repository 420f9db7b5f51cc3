"""Fits coefficients of laws to runs: forms, a grid of starts, descents, hold-out and bootstrap. Uses SciPy."""
