"""A sweep as it is written: in a file, or as a recipe with arguments."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from framework.errors import nearest
from framework.recipe.errors import COMMAND_LINE, Origin, RecipeError, shorten
from framework.recipe.files import SUFFIXES, display
from framework.recipe.yaml_reader import Entry, plain
from framework.sweep import values
from framework.sweep.arguments import Arguments, check_key, read_over, read_seeds, seeds_argument
from framework.sweep.axes import Axis, Chain, Node, product, zipped
from framework.sweep.expression import Equation, Expression, read_equation, read_expression
from framework.sweep.fields import require_names
from framework.sweep.files import find_sweep, read_tree

KEYS = ("recipe", "name", "tags", "set", "over", "link", "where", "seeds")
OPERATORS = ("product", "zip", "chain")


@dataclass(frozen=True)
class Document:
    """What a sweep states. origin: of the whole. set: dotted keys of all cells, and where each was stated."""

    name: str
    recipe: str
    origin: Origin
    tags: tuple[str, ...] = ()
    set: tuple[tuple[str, Any, Origin], ...] = ()
    axes: tuple[Node, ...] = ()
    seeds: Axis | None = None
    links: tuple[Equation, ...] = ()
    conditions: tuple[Expression, ...] = ()

    @property
    def nodes(self) -> tuple[Node, ...]:
        """What multiplies to the cells: the axes, then the seeds."""
        return self.axes if self.seeds is None else (*self.axes, self.seeds)


def read_document(source: str, arguments: Arguments) -> Document:
    """The sweep of a file or name, or of a recipe, and what the arguments add. Raises RecipeError."""
    path = find_sweep(source)
    document = Document(Path(source).stem, source, COMMAND_LINE) if path is None else _of_file(path)
    return replace(
        document, name=document.name if arguments.name is None else arguments.name,
        tags=(*document.tags, *(tag for tag in dict.fromkeys(arguments.tags) if tag not in document.tags)),
        axes=(*document.axes, *map(read_over, arguments.over)),
        seeds=document.seeds if arguments.seeds is None else seeds_argument(arguments.seeds),
        links=(*document.links, *(_link(text, "--link", COMMAND_LINE) for text in arguments.link)),
        conditions=(*document.conditions, *(_condition(text, "--where", COMMAND_LINE) for text in arguments.where)),
    )


def _of_file(path: Path) -> Document:
    tree = read_tree(path)
    for key, entry in tree.value.items():
        if key not in KEYS:
            raise RecipeError(str(key), f"unknown key{nearest(str(key), KEYS)}; allowed: {', '.join(KEYS)}",
                              entry.origin)
    stated: dict[str, Entry] = {key: entry for key, entry in tree.value.items() if entry.value is not None}
    named = {key: _text(stated[key], key) for key in ("recipe", "name") if key in stated}
    if "recipe" not in named:
        raise RecipeError("recipe", "missing; allowed: a recipe's name, or a .yaml file beside this one",
                          Origin(display(path)))
    over, seeds = stated.get("over"), stated.get("seeds")
    return Document(
        named.get("name", path.stem), _recipe(named["recipe"], path), Origin(display(path)),
        tags=tuple(_text(item, "tags") for item in _items(stated, "tags")),
        set=tuple(_fixed(stated["set"], "")) if "set" in stated else (),
        axes=() if over is None else (_node(over, "over"),),
        seeds=None if seeds is None else read_seeds(plain(seeds), "seeds", seeds.origin),
        links=tuple(_link(item.value, "link", item.origin) for item in _items(stated, "link")),
        conditions=tuple(_condition(item.value, "where", item.origin) for item in _items(stated, "where")),
    )


def _recipe(name: str, path: Path) -> str:
    """A file's path is relative to the sweep's folder."""
    return str(path.parent / name) if Path(name).suffix in SUFFIXES else name


def _text(entry: Entry, key: str) -> str:
    if not isinstance(entry.value, str) or not entry.value:
        raise RecipeError(key, f"given {shorten(plain(entry))}; allowed: text", entry.origin)
    return entry.value


def _items(stated: dict[str, Entry], key: str) -> tuple[Entry, ...]:
    """The entries of a list; a single text stands for a list of it."""
    entry = stated.get(key)
    if entry is None:
        return ()
    return entry.value if isinstance(entry.value, tuple) else (entry,)


def _fixed(entry: Entry, prefix: str) -> Iterator[tuple[str, Any, Origin]]:
    """The dotted keys of `set`, sections taken apart as far as their keys are plain words."""
    if not isinstance(entry.value, dict):
        raise RecipeError("set", f"given {shorten(plain(entry))}; allowed: a mapping of fields", entry.origin)
    for key, inner in entry.value.items():
        key = prefix + check_key(key, inner.origin)
        if isinstance(inner.value, dict) and inner.value and all(map(_is_word, inner.value)):
            yield from _fixed(inner, f"{key}.")
        else:
            yield key, plain(inner), inner.origin


def _is_word(key: Any) -> bool:
    return isinstance(key, str) and key.isidentifier()


def _node(entry: Entry, key: str) -> Node:
    """A list is a product of its entries, a mapping one of its keys."""
    if isinstance(entry.value, dict):
        return product(list(_parts(entry, key)), entry.origin)
    if isinstance(entry.value, tuple) and entry.value:
        return product([_mapping(item, key) for item in entry.value], entry.origin)
    raise _no_axes(entry, key)


def _mapping(entry: Entry, key: str) -> Node:
    if not isinstance(entry.value, dict):
        raise RecipeError(key, f"given {shorten(plain(entry))}; allowed: mappings as optim.lr: [1e-3, 2e-3], or with "
                          f"{', '.join(OPERATORS)}", entry.origin)
    return _node(entry, key)


def _parts(entry: Entry, key: str) -> Iterator[Node]:
    """A node for each key of a mapping: of an operator, or the axis of a field."""
    if not entry.value:
        raise _no_axes(entry, key)
    for name, inner in entry.value.items():
        if name in OPERATORS:
            yield _operator(name, inner)
        else:
            name = check_key(name, inner.origin)
            yield Axis(name, _axis_values(inner, name), inner.origin)


def _operator(name: str, entry: Entry) -> Node:
    if name == "product":
        return _node(entry, name)
    if not isinstance(entry.value, tuple) and (name == "chain" or not isinstance(entry.value, dict)):
        raise RecipeError(name, f"given {shorten(plain(entry))}; allowed: a list of mappings", entry.origin)
    if not entry.value:
        raise _no_axes(entry, name)
    if isinstance(entry.value, dict):
        return zipped(list(_parts(entry, name)), entry.origin)
    parts = [_mapping(item, name) for item in entry.value]
    return Chain(tuple(parts)) if name == "chain" else zipped(parts, entry.origin)


def _axis_values(entry: Entry, key: str) -> tuple[values.Value, ...]:
    if isinstance(entry.value, tuple) and entry.value:
        return tuple(values.of(plain(item)) for item in entry.value)
    if isinstance(entry.value, str) and values.is_range(entry.value):
        return values.read_range(entry.value, key, entry.origin)
    given = "no values" if entry.value == () else shorten(plain(entry))
    raise RecipeError(key, f"given {given}; allowed: a list of one value or more, or {values.RANGES}", entry.origin)


def _no_axes(entry: Entry, key: str) -> RecipeError:
    return RecipeError(key, f"given {shorten(plain(entry))}; allowed: a list or mapping of one axis or more",
                       entry.origin)


def _link(text: object, what: str, origin: Origin) -> Equation:
    equation = read_equation(text, what, origin)
    require_names(equation.names, what, origin)
    return equation


def _condition(text: object, what: str, origin: Origin) -> Expression:
    condition = read_expression(text, what, origin)
    require_names(condition.names, what, origin)
    return condition
