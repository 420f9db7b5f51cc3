"""Lists that options take, joined by commas."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

N = TypeVar("N", int, float)


def positive_integers(option: str, text: str) -> list[int]:
    """`64,128` as ascending numbers, each once. Raises UserError for what is none, or fewer than two."""
    return _numbers(option, text, int, "whole numbers")


def positive_floats(option: str, text: str) -> list[float]:
    """`1e-3,2e-3` as ascending numbers, each once. Raises UserError for what is none, or fewer than two."""
    return _numbers(option, text, float, "numbers")


def _numbers(option: str, text: str, read: Callable[[str], N], kind: str) -> list[N]:
    from framework.errors import UserError

    try:
        found = sorted({read(part) for part in text.split(",")})
    except ValueError:
        found = []
    if len(found) < 2 or not 0 < found[0] <= found[-1] < float("inf"):
        raise UserError(f"{option} {text!r}; allowed: two or more different positive {kind} joined by commas")
    return found
