"""Entries of a config.json, written from an architecture and read back into fields of a recipe.

An entry is read before it is believed: a value that a model of ours cannot have is a mismatch, told by name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from framework.recipe.derive import section_of
from framework.recipe.errors import shorten

if TYPE_CHECKING:
    from framework.recipe import Architecture
    from framework.recipe.architecture import Settings

Config = Mapping[str, Any]
MISSING = object()


class Mismatch(Exception):
    """Says in a few words why something cannot be expressed."""


@dataclass(frozen=True)
class Facts:
    """What a config tells beside the architecture: longest sequence trained on, the id that ends documents, dtype."""

    architecture: Architecture
    seq_len: int
    eod: int | None
    dtype: str


class Entry(Protocol):
    """write: keys and values of a config. read: dotted fields of the recipe's model section; raises Mismatch."""

    def write(self, facts: Facts) -> dict[str, Any]: ...

    def read(self, config: Config) -> dict[str, Any]: ...


@dataclass(frozen=True)
class Size:
    """A value that stands in both. keys: all are written, the first one there is read.

    path: `d_model`, or of a section `attention.num_heads`, in whose sublayers it is the same. default: the class's,
    where no key is there. unused: what is written where the model has no such sublayer.
    """

    keys: str
    path: str
    default: Any = MISSING
    unused: Any = None

    def write(self, facts: Facts) -> dict[str, Any]:
        return dict.fromkeys(self.keys.split(), self._value(facts.architecture))

    def read(self, config: Config) -> dict[str, Any]:
        value = first_of(config, self.keys.split(), self.default)
        if value is MISSING:
            raise Mismatch(f"{self.keys.split()[0]} is missing")
        return {} if value is None else {self.path: value}

    def _value(self, architecture: Architecture) -> Any:
        section, _, name = self.path.rpartition(".")
        owner = settings_of(architecture, section) if section else architecture.model
        value = self.unused if owner is None else getattr(owner, name)
        return int(value) if isinstance(value, float) and value.is_integer() and name == "expand" else value


@dataclass(frozen=True)
class Fixed:
    """A key with one value that ours has. default: the class's where the key is not there, if it is another one.

    allowed: further values that mean the same.
    """

    key: str
    value: Any
    default: Any = MISSING
    allowed: tuple[Any, ...] = ()

    def write(self, facts: Facts) -> dict[str, Any]:
        return {self.key: self.value}

    def read(self, config: Config) -> dict[str, Any]:
        given = first_of(config, [self.key], self.value if self.default is MISSING else self.default)
        if isinstance(self.value, bool) and config.get(self.key, given) is None:
            given = False  # as transformers takes null
        if given != self.value and given not in self.allowed:
            raise Mismatch(f"{self.key} is {shorten(given)}; allowed: {shorten(self.value)}")
        return {}


@dataclass(frozen=True)
class Refused:
    """Keys that are not written, and are read only where they say nothing."""

    keys: str

    def write(self, facts: Facts) -> dict[str, Any]:
        return {}

    def read(self, config: Config) -> dict[str, Any]:
        for key in self.keys.split():
            if given := config.get(key):
                raise Mismatch(f"{key} is {shorten(given)}; allowed: none")
        return {}


@dataclass(frozen=True)
class Written:
    """Keys that are written and not read: they change nothing that a model computes of a text."""

    values: Callable[[Facts], dict[str, Any]]

    def write(self, facts: Facts) -> dict[str, Any]:
        return self.values(facts)

    def read(self, config: Config) -> dict[str, Any]:
        return {}


@dataclass(frozen=True)
class Means:
    """Fields of the recipe that every model of this type has; no key says so."""

    fields: dict[str, Any]

    def write(self, facts: Facts) -> dict[str, Any]:
        return {}

    def read(self, config: Config) -> dict[str, Any]:
        return dict(self.fields)


@dataclass(frozen=True)
class Computed:
    """Keys of which each direction is a function."""

    written: Callable[[Facts], dict[str, Any]]
    fields: Callable[[Config], dict[str, Any]]

    def write(self, facts: Facts) -> dict[str, Any]:
        return self.written(facts)

    def read(self, config: Config) -> dict[str, Any]:
        return self.fields(config)


def flag(config: Config, key: str, default: bool) -> bool:
    """Whether a key says yes. Raises Mismatch for what is neither true nor false."""
    if not isinstance(given := config.get(key, default), bool):
        raise Mismatch(f"{key} is {shorten(given)}; allowed: true, false")
    return given


def settings_of(architecture: Architecture, section: str) -> Settings | None:
    """The settings of the first sublayer that a section describes."""
    return next((sublayer.settings for sublayer in architecture.sublayers()
                 if section_of(sublayer.kind) == section), None)


def first_of(config: Config, keys: list[str], default: Any = None) -> Any:
    """The value of the first key that is there and not null."""
    return next((config[key] for key in keys if config.get(key) is not None), default)
