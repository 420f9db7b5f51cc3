"""Arithmetic that is exact where it can be, and bounded: fractions first, floats where no fraction is exact."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from fractions import Fraction

from framework.recipe.errors import shorten

Number = Fraction | float
MOST_BITS = 4096
_ARITHMETIC = {"+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.truediv,
               "//": operator.floordiv, "%": operator.mod}
_ORDER = {"==": operator.eq, "!=": operator.ne, "<": operator.lt, "<=": operator.le, ">": operator.gt,
          ">=": operator.ge}


class Impossible(ValueError):
    """An expression has no value."""


def exact(value: object) -> Number | bool | str | None:
    """A value of a recipe: numbers as fractions, a float as the decimal that it is written as. Raises Impossible."""
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, int | Fraction):
        return _bounded(Fraction(value))
    if isinstance(value, float):
        return Fraction(repr(value)) if math.isfinite(value) else value
    raise Impossible(f"{shorten(value)} is no number")


def require_number(value: object) -> Number:
    """Raises Impossible for anything else."""
    if isinstance(value, bool) or not isinstance(value, Fraction | float):
        raise Impossible(f"{shorten(value)} is no number")
    return value


def apply(sign: str, left: object, right: object) -> Number:
    """An operation on two numbers. Raises Impossible where it has no value, or one that is too large."""
    left, right = require_number(left), require_number(right)
    try:
        if sign == "**":
            return power(left, right)
        result = _ARITHMETIC[sign](left, right)
    except ZeroDivisionError:
        raise Impossible(f"{_text(left)} {sign} 0") from None
    except OverflowError:
        raise Impossible(f"{_text(left)} {sign} {_text(right)} is too large") from None
    return _bounded(Fraction(result) if isinstance(result, int) else result)


def power(base: Number, exponent: Number) -> Number:
    """base ** exponent, exact where that is rational. Raises Impossible for no real number, or one too large."""
    if base < 0 and (isinstance(exponent, float) or exponent.denominator > 1):
        raise Impossible(f"{_text(base)} ** {_text(exponent)} is no real number")
    if base == 0 and exponent < 0:
        raise Impossible(f"0 ** {_text(exponent)}")
    if isinstance(base, Fraction) and isinstance(exponent, Fraction):
        bits = max(base.numerator.bit_length(), base.denominator.bit_length())
        if base not in (0, 1, -1) and abs(exponent) * (bits - 1) > MOST_BITS:
            raise Impossible(f"{_text(base)} ** {_text(exponent)} is too large")
        root = _root(base, exponent.denominator)
        if root is not None:
            return _bounded(Fraction(root ** exponent.numerator))
    try:
        return float(base) ** float(exponent)
    except OverflowError:
        raise Impossible(f"{_text(base)} ** {_text(exponent)} is too large") from None


def call(name: str, values: Sequence[object]) -> Number:
    """min, max, log2 or sqrt of numbers. Raises Impossible."""
    numbers = [require_number(value) for value in values]
    if name in ("min", "max"):
        return {"min": min, "max": max}[name](numbers)
    if name == "sqrt":
        return power(numbers[0], Fraction(1, 2))
    return logarithm(numbers[0], Fraction(2))


def logarithm(number: Number, base: Number) -> Number:
    """log of a number, exact where it is whole. Raises Impossible where there is none."""
    if number <= 0 or base <= 0 or base == 1:
        raise Impossible(f"the logarithm of {_text(number)} to base {_text(base)}")
    found = _log(number) / _log(base)
    whole = round(found)
    if isinstance(number, Fraction) and isinstance(base, Fraction) and abs(whole) <= MOST_BITS:
        bits = max(base.numerator.bit_length(), base.denominator.bit_length())
        if abs(whole) * bits <= 2 * MOST_BITS and base**whole == number:
            return Fraction(whole)
    return found


def compare(sign: str, left: object, right: object) -> bool:
    """A comparison; order is of numbers alone. Raises Impossible."""
    if sign in ("==", "!="):
        # true is not 1, and text is no number.
        same = left == right and isinstance(left, bool) == isinstance(right, bool)
        return same == (sign == "==")
    return bool(_ORDER[sign](require_number(left), require_number(right)))


def _root(base: Fraction, degree: int) -> Fraction | None:
    """The exact root of a number from 0, None where it is not rational."""
    if degree == 1:
        return base
    if degree > MOST_BITS:
        return None
    numerator, denominator = _whole_root(base.numerator, degree), _whole_root(base.denominator, degree)
    return None if numerator is None or denominator is None else Fraction(numerator, denominator)


def _whole_root(number: int, degree: int) -> int | None:
    low, high = 0, 1 << (number.bit_length() // degree + 1)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if middle**degree <= number else (low, middle - 1)
    return low if low**degree == number else None


def _log(number: Number) -> float:
    if isinstance(number, float):
        return math.log2(number)
    return math.log2(number.numerator) - math.log2(number.denominator)


def _bounded(number: Number) -> Number:
    if isinstance(number, Fraction):
        if max(number.numerator.bit_length(), number.denominator.bit_length()) > MOST_BITS:
            raise Impossible("a number is too large")
    elif math.isnan(number):
        raise Impossible("a number is none (NaN)")
    return number


def _text(number: Number) -> str:
    try:
        return f"{float(number):g}"
    except OverflowError:
        return "a number beyond 1e308"
