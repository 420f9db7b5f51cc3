"""Plain numbers with names: what a law is asked with, what is refused, and what is warned of."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from framework.errors import UserError, nearest

LARGEST = 1e40
"""No count of parameters, tokens or FLOPs comes near; below it nothing here overflows."""

Values = dict[str, float]
Range = tuple[float, float]


@dataclass(frozen=True)
class Variable:
    """One number of a law: what it counts, its least possible value, and what it is where nobody gives it.

    default: None where the law decides, or cannot do without.
    """

    name: str
    meaning: str
    minimum: float = 1.0
    default: float | None = None
    whole: bool = False

    def check(self, law: str, value: float) -> float:
        """The value. Raises UserError for one that is impossible, whatever the law was fitted on."""
        kind = "a whole number" if self.whole else "a number"
        if not self.minimum <= value <= LARGEST or (self.whole and value != int(value)):
            raise UserError(f"{law}: {self.name}={value:g}; allowed: {kind} from {self.minimum:g} to {LARGEST:g}")
        return value


def parse(words: Iterable[str]) -> Values:
    """`name=value` words as numbers. Raises UserError for a word that is none, or a name given twice."""
    values: Values = {}
    for word in words:
        name, equals, text = word.partition("=")
        if name in values:
            raise UserError(f"{name} is given twice; allowed: once")
        try:
            values[name] = float(text)
        except ValueError:
            equals = ""
        if not equals or not name:
            raise UserError(f"{word!r}; allowed: name=number, as tokens=1e9")
    return values


def read(law: str, variables: Iterable[Variable], given: Mapping[str, float]) -> Values:
    """The numbers given and the defaults of the others, checked. Raises UserError for a name that the law has not."""
    known = {variable.name: variable for variable in variables}
    for name in given:
        if name not in known:
            raise UserError(f"{law}: {name} is not known here; allowed: {', '.join(known) or 'nothing'}"
                            f"{nearest(name, known)}")
    values = {name: each.default for name, each in known.items() if each.default is not None}
    values |= {name: float(value) for name, value in given.items()}
    return {name: known[name].check(law, value) for name, value in values.items()}


def require(law: str, values: Mapping[str, float], *names: str) -> list[float]:
    """The numbers of those names. Raises UserError that tells what is missing."""
    if missing := [name for name in names if name not in values]:
        raise UserError(f"{law}: {' and '.join(missing)} not given; allowed: {', '.join(f'{n}=NUMBER' for n in names)}")
    return [values[name] for name in names]


def one_of(law: str, values: Mapping[str, float], names: Iterable[str]) -> tuple[str, float]:
    """Name and number of the one that is given. Raises UserError where none is, or several are."""
    names = list(names)
    if len(found := [name for name in names if name in values]) != 1:
        given = " and ".join(found) or "none of them"
        raise UserError(f"{law}: given {given}; allowed: one of {', '.join(names)}")
    return found[0], values[found[0]]


def extrapolations(law: str, values: Mapping[str, float], domain: Mapping[str, Range]) -> list[str]:
    """A line for each number outside the range that the law was fitted on (0.1 % of rounding aside)."""
    found = []
    for name, (low, high) in domain.items():
        if name in values and not low * 0.999 <= values[name] <= high * 1.001:
            found.append(f"{law}: {name} {values[name]:.4g} is outside what the law was fitted on, "
                         f"{low:.4g} to {high:.4g}: extrapolated")
    return found
