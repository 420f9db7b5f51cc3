"""Values of an axis: a list, or a range written as text, each with the short text that names its cells."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import yaml

from framework.recipe.errors import Origin, RecipeError, shorten
from framework.recipe.yaml_reader import LARGEST

MOST_CELLS = 100_000
LONGEST_LABEL = 40
_NUMBER = r"[-+]?(?:\d{1,20}(?:\.\d{0,20})?|\.\d{1,20})(?:[eE][-+]?\d{1,3})?"
_RANGE = re.compile(rf"({_NUMBER})\s*\.\.\s*({_NUMBER})(?:\s+step\s+({_NUMBER}))?")
_LOG_RANGE = re.compile(r"log(2|10)\s*\((.*)\)", re.DOTALL)
_WORD = re.compile(r"[A-Za-z_][A-Za-z0-9_./-]*")
_NOT_IN_NAMES = re.compile(r"[^A-Za-z0-9._^=-]+")
_SPOKEN_FOR = ("null", "true", "false")
RANGES = "a range as 1..5, 0.1..0.5 step 0.1 or log2(-10..-7 step 0.5)"
LARGEST_POWER = {2: 1023, 10: 308}


@dataclass(frozen=True)
class Value:
    """given: as a recipe holds it. label: its part of a cell's name."""

    given: Any
    label: str


def of(given: Any) -> Value:
    """A value that is named by itself."""
    return Value(given, _label(given))


def spell(value: Any) -> str:
    """One line of YAML that is read as the same value, whatever text it holds."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, str):
        return value if _WORD.fullmatch(value) and value.lower() not in _SPOKEN_FOR else _quote(value)
    if isinstance(value, float):
        return _spell_float(value)
    if isinstance(value, dict):
        return f"{{{', '.join(f'{spell(key)}: {spell(inner)}' for key, inner in value.items())}}}"
    return f"[{', '.join(map(spell, value))}]" if isinstance(value, list | tuple) else str(value)


def assign(key: str, value: Any) -> str:
    """The override `key=value`. A pattern stands as it is, since no recipe reads it as YAML there."""
    return f"{key}={value if key == 'model.pattern' and isinstance(value, str) else spell(value)}"


def is_range(text: str) -> bool:
    """Whether a text is written as a range."""
    text = text.strip()
    return bool(_RANGE.fullmatch(text) or _LOG_RANGE.fullmatch(text))


def read_range(text: str, key: str, origin: Origin) -> tuple[Value, ...]:
    """The values of a range, both ends included; whole where all that was written is. Raises RecipeError.

    log2 and log10 take their base to each power of the range, and such values are named by base and power.
    """
    log = _LOG_RANGE.fullmatch(text.strip())
    inner = _RANGE.fullmatch(log[2].strip() if log else text.strip())
    if inner is None:
        raise RecipeError(key, f"given {shorten(text)}; allowed: {RANGES}", origin)
    first, last, step = (Fraction(part or "1") for part in inner.groups())
    numbers = _steps(first, last, step, text, key, origin)
    if log is None:
        is_whole = all(number.denominator == 1 for number in (first, step)) and "." not in "".join(
            part or "" for part in inner.groups())
        if is_whole and max(map(abs, numbers)) >= LARGEST:
            raise RecipeError(key, f"given {shorten(text)}; allowed: whole numbers below 2^63", origin)
        return tuple(of(int(number) if is_whole else _float(number, text, key, origin)) for number in numbers)
    base = int(log[1])
    if max(map(abs, numbers)) > LARGEST_POWER[base]:
        raise RecipeError(key, f"given {shorten(text)}; allowed: powers up to {LARGEST_POWER[base]}", origin)
    return tuple(Value(_power(base, number), f"{base}^{_plain_number(number)}") for number in numbers)


def _steps(first: Fraction, last: Fraction, step: Fraction, text: str, key: str, origin: Origin) -> list[Fraction]:
    if step == 0 or (last - first) / step < 0:
        raise RecipeError(key, f"given {shorten(text)}, whose step never reaches the end; allowed: another step, "
                          "below 0 where the range falls", origin)
    count = (last - first) / step
    if count >= MOST_CELLS:
        raise RecipeError(key, f"given {shorten(text)}, {int(count) + 1:,} values; allowed: up to {MOST_CELLS:,}",
                          origin)
    if count.denominator > 1:
        below = first + int(count) * step
        raise RecipeError(key, f"given {shorten(text)}, which does not end on a step; allowed: an end at "
                          f"{_plain_number(below)} or {_plain_number(below + step)}", origin)
    return [first + index * step for index in range(int(count) + 1)]


def _power(base: int, exponent: Fraction) -> int | float:
    """Exact for whole powers, as near as a float is otherwise."""
    if exponent.denominator > 1:
        return float(base) ** float(exponent)
    number = Fraction(base) ** int(exponent)
    return int(number) if number.denominator == 1 and number < LARGEST else float(number)


def _float(number: Fraction, text: str, key: str, origin: Origin) -> float:
    """The nearest float, so that a third step of 0.1 is 0.3."""
    try:
        return float(number)
    except OverflowError:
        raise RecipeError(key, f"given {shorten(text)}; allowed: numbers below 1e308", origin) from None


def _plain_number(number: Fraction) -> str:
    return str(int(number)) if number.denominator == 1 else repr(float(number))


def _spell_float(value: float) -> str:
    if value != value or value in (float("inf"), float("-inf")):
        return {"nan": ".nan", "inf": ".inf", "-inf": "-.inf"}[str(value)]
    text = repr(value)
    # 1e+16 would be read as a whole number.
    return text if "." in text or "e-" in text else text.replace("e", ".0e")


def _quote(text: str) -> str:
    return yaml.dump(text, Dumper=yaml.SafeDumper, default_style='"', width=2**31, allow_unicode=True).rstrip("\n")


def _label(given: Any) -> str:
    """The value's text in letters, digits and . _ - ^ =; a hash tells apart what they cannot."""
    text = spell(given)
    plain = _NOT_IN_NAMES.sub("_", given if isinstance(given, str) else text).strip("_")[:LONGEST_LABEL]
    return plain if plain == text else f"{plain}_{digest(text)}".lstrip("_")


def digest(text: str) -> str:
    """A short hash of a text."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:8]
