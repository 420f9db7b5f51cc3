"""YAML that remembers lines, runs nothing and guesses little.

Scalars are read by the rules of YAML 1.2: only true and false are booleans, 1e-3 and 1e9 are numbers. Aliases are
refused, since an unquoted pattern that begins with `*` would be one; so are tags and repeated keys.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import partial
from typing import Any

import yaml

from framework.recipe.errors import Origin, RecipeError, shorten

QUOTE = 'quote the pattern: pattern: "(*E)x4" (*, |, [ and - mean something in YAML)'
LARGEST = 2**63
MAX_DEPTH = 30

_INT = re.compile(r"[-+]?[0-9][0-9_]*")
_WHOLE = re.compile(r"([-+]?[0-9]+)[eE]\+?([0-9]{1,2})")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
_WORDS = {"": None, "~": None, "null": None, "true": True, "false": False}


@dataclass(frozen=True)
class Entry:
    """A value of a recipe: a scalar, a tuple of plain values (of entries where so read), or a mapping of entries.

    level: how late it was stated; 0 is the deepest base, the command line is last.
    """

    value: Any
    origin: Origin
    level: int


class NotYAML(RecipeError):
    """The text breaks YAML's syntax."""


class _Aliased(yaml.YAMLError):
    def __init__(self, line: int) -> None:
        self.line = line


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers: dict = {}

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            raise _Aliased(self.peek_event().start_mark.line + 1)
        return super().compose_node(parent, index)


def read_yaml(text: str, place: str, level: int, numbered: bool = True, items: bool = False) -> Entry:
    """Read one document into entries; `place` and, if numbered, the line become their origins. Raises RecipeError.

    items: whether those of lists are entries too; `plain` takes them as well.
    """
    origin = partial(Origin, place) if numbered else lambda line: Origin(place)
    try:
        node = yaml.compose(text, Loader=_Loader)
    except _Aliased as error:
        raise NotYAML((), f"'*' begins an alias, which recipes do not have; allowed: {QUOTE}",
                      origin(error.line)) from None
    except yaml.MarkedYAMLError as error:
        raise _syntax_error(text, error, origin) from None
    except (yaml.YAMLError, RecursionError) as error:
        problem = " ".join(str(error).split()[:12]) if isinstance(error, yaml.YAMLError) else "nested too deep"
        raise NotYAML((), f"not YAML: {problem}; allowed: nested 'key: value' lines", Origin(place)) from None
    return Entry(None, Origin(place), level) if node is None else _entry(node, origin, level, MAX_DEPTH, items)


def _syntax_error(text: str, error: yaml.MarkedYAMLError, origin: partial) -> NotYAML:
    mark = error.problem_mark or error.context_mark
    line = mark.line if mark else 0
    lines = text.splitlines()
    near = lines[max(0, line - 1) : line + 1]
    hint = QUOTE if any(each.strip().startswith("pattern:") for each in near) else "nested 'key: value' lines"
    return NotYAML((), f"not YAML: {error.problem or error.context}; allowed: {hint}", origin(line + 1))


def _entry(node: yaml.Node, origin: partial, level: int, depth: int, items: bool) -> Entry:
    line = node.start_mark.line + 1
    if depth == 0:
        raise RecipeError((), f"nested more than {MAX_DEPTH} deep; allowed: sections of the schema", origin(line))
    if isinstance(node, yaml.ScalarNode):
        return Entry(_scalar(node, origin(line)), origin(line), level)
    if isinstance(node, yaml.SequenceNode):
        _refuse_tag(node, "tag:yaml.org,2002:seq", origin(line))
        entries = [_entry(each, origin, level, depth - 1, items) for each in node.value]
        return Entry(tuple(entries if items else map(plain, entries)), origin(line), level)
    _refuse_tag(node, "tag:yaml.org,2002:map", origin(line))
    named: dict[Any, Entry] = {}
    for key_node, value_node in node.value:
        key = _key(key_node, origin)
        if key in named:
            first = f", first at line {named[key].origin.line}" if named[key].origin.line else ""
            raise RecipeError(str(key), f"given twice{first}; allowed: once", origin(key_node.start_mark.line + 1))
        inner = _entry(value_node, origin, level, depth - 1, items)
        named[key] = Entry(inner.value, origin(key_node.start_mark.line + 1), level)
    return Entry(named, origin(line), level)


def _key(node: yaml.Node, origin: partial) -> str | int:
    place = origin(node.start_mark.line + 1)
    key = _scalar(node, place) if isinstance(node, yaml.ScalarNode) else None
    if isinstance(key, bool) or not isinstance(key, (str, int)):
        raise RecipeError((), f"a key of type {type(key).__name__}; allowed: a word, or a whole number", place)
    return key


def _scalar(node: yaml.ScalarNode, origin: Origin) -> Any:
    _refuse_tag(node, "tag:yaml.org,2002:str", origin)
    require_whole(node.value, origin)
    return node.value if node.style else _plain_scalar(node.value, origin)


def _plain_scalar(text: str, origin: Origin) -> Any:
    if text.lower() in _WORDS:
        return _WORDS[text.lower()]
    if _INT.fullmatch(text):
        return _integer(text.replace("_", ""), 0, origin)
    if match := _WHOLE.fullmatch(text):
        return _integer(match[1], int(match[2]), origin)
    return float(text.replace(".inf", "inf").replace(".nan", "nan")) if _FLOAT.fullmatch(text) else text


def require_whole(text: str, origin: Origin) -> None:
    """Raise RecipeError for half a character, as an escape or a byte of the command line may give it: no file could
    hold it."""
    if any("\ud800" <= sign <= "\udfff" for sign in text):
        raise RecipeError((), f"given {shorten(text)}; allowed: text that UTF-8 can hold", origin)


def _integer(digits: str, exponent: int, origin: Origin) -> int:
    if len(digits) + exponent > 20 or abs(int(digits) * 10**exponent) >= LARGEST:
        given = f"{digits[:40]}..." if len(digits) > 40 else f"{digits}e{exponent}" if exponent else digits
        raise RecipeError((), f"given {given}; allowed: a whole number below 2^63", origin)
    return int(digits) * 10**exponent


def _refuse_tag(node: yaml.Node, expected: str, origin: Origin) -> None:
    if node.tag != expected:
        raise RecipeError((), f"the tag {shorten(node.tag)}; allowed: plain values without tags", origin)


def plain(entry: Entry) -> Any:
    """The entry's value without origins."""
    if isinstance(entry.value, dict):
        return {key: plain(inner) for key, inner in entry.value.items()}
    if isinstance(entry.value, tuple):
        return tuple(plain(item) if isinstance(item, Entry) else item for item in entry.value)
    return entry.value
