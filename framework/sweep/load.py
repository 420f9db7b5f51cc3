"""From a sweep as it is written to its cells, every one of them a checked recipe."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from framework.errors import UserError
from framework.files import is_plain_name
from framework.recipe import Loaded, RecipeError, Variants, read_variants
from framework.recipe.errors import COMMAND_LINE, Origin, shorten
from framework.recipe.tree import override, walk
from framework.recipe.yaml_reader import Entry, plain
from framework.sweep.arguments import Arguments
from framework.sweep.axes import Assignment, axes_of, overlap, product
from framework.sweep.document import Document, read_document
from framework.sweep.expression import Equation, Expression
from framework.sweep.fields import Facts
from framework.sweep.links import Solution, refuse_moved, settle_links
from framework.sweep.names import cell_names
from framework.sweep.numbers import Impossible
from framework.sweep.values import MOST_CELLS, assign


@dataclass(frozen=True)
class Cell:
    """One run of a sweep.

    name: of its run folder. changes: the fields by which it differs, those that links gave last. overrides: key=value,
    such that `load_recipe(sweep.recipe, overrides)` equals `loaded`.
    """

    name: str
    changes: dict[str, object]
    overrides: tuple[str, ...]
    loaded: Loaded


@dataclass(frozen=True)
class Sweep:
    """recipe: the name or file that every cell changes."""

    name: str
    recipe: str
    tags: tuple[str, ...]
    cells: tuple[Cell, ...]


@dataclass(frozen=True)
class _Common:
    """What all cells share: the recipe, and key=value of the command line and of `set`."""

    document: Document
    variants: Variants
    overrides: tuple[str, ...]
    stated: dict[str, object]
    origins: dict[str, Origin]


def load_sweep(source: str, arguments: Arguments = Arguments()) -> Sweep:  # noqa: B008 (frozen)
    """Read, expand, link, check and filter a sweep. source: its name or file, or a recipe's.

    Raises UserError, RecipeError among them: one line that says what was given, what is allowed, and where; a recipe
    that cannot be names its cell.
    """
    document = read_document(source, arguments)
    if not is_plain_name(document.name):
        raise UserError(f"{document.origin}: the sweep's name {shorten(document.name)}; allowed: a plain name for a "
                        "folder, without '/'")
    common = _common(document, arguments.overrides)
    assignments = _assignments(document)
    names = cell_names(assignments) if document.nodes else [document.name]
    cells = tuple(_cells(names, assignments, common))
    if not cells:
        raise RecipeError("", f"no cell of {len(assignments)} is left after {_filters(document)}; allowed: one or more",
                          document.origin)
    _refuse_equal(cells, document.origin)
    return Sweep(document.name, document.recipe, document.tags, cells)


def _common(document: Document, overrides: Sequence[str]) -> _Common:
    variants = read_variants(document.recipe)
    given = {key: plain(entry) for key, entry in walk(override(_nothing(), overrides, 0))
             if not isinstance(entry.value, dict)}
    fixed = [row for row in document.set if not any(overlap(row[0], key) for key in given)]
    stated = {key: value for key, value, _ in fixed} | given
    texts = [assign(key, value) for key, value, _ in fixed]
    tags = () if not document.tags else (assign("tags", _all_tags(document, variants, given)),)
    kept = [text for text in overrides if not (tags and text.partition("=")[0].strip() == "tags")]
    origins = {key: origin for key, _, origin in fixed} | dict.fromkeys(given, COMMAND_LINE)
    _require_apart(document, origins)
    origins |= {axis.key: axis.origin for node in document.nodes for axis in axes_of(node)}
    return _Common(document, variants, (*kept, *texts, *tags), stated, origins)


def _require_apart(document: Document, origins: Mapping[str, Origin]) -> None:
    """No axis may state what is stated for all cells. Raises RecipeError."""
    for key in (key for node in document.nodes for key in node.keys):
        for other, origin in origins.items():
            if overlap(key, other):
                raise RecipeError(key, f"an axis, and stated for all cells too ({other}, {origin}); allowed: one of "
                                  "the two", document.origin)
        if document.tags and overlap(key, "tags"):
            raise RecipeError(key, "an axis, and tags of the sweep; allowed: one of the two", document.origin)


def _all_tags(document: Document, variants: Variants, given: dict[str, object]) -> list[object]:
    """The recipe's own tags, or those that the command line gives it, and then the sweep's."""
    own = variants.tree.value.get("tags")
    tags = given["tags"] if "tags" in given else own and plain(own)
    return list(dict.fromkeys((*(tags if isinstance(tags, tuple) else ()), *document.tags)))


def _nothing() -> Entry:
    return Entry({}, COMMAND_LINE, 0)


def _assignments(document: Document) -> list[Assignment]:
    """Every combination of the axes. Raises RecipeError for too many."""
    whole = product(document.nodes, document.origin)
    if whole.count > MOST_CELLS:
        raise RecipeError("over", f"gives {whole.count:,} cells; allowed: up to {MOST_CELLS:,}", document.origin)
    return list(whole.assignments())


def _cells(names: Sequence[str], assignments: Sequence[Assignment], common: _Common) -> Iterator[Cell]:
    """The cells that every link and condition lets pass."""
    for name, assignment in zip(names, assignments, strict=True):
        cell = f"cell {name}: " if assignment else ""
        changes = {key: value.given for key, value in assignment.items()}

        load = partial(_load, common, cell, changes)
        solutions = settle_links(common.document.links, common.stated | changes, load, cell)
        if solutions is None:
            continue
        loaded = load(solutions)
        facts = Facts(loaded)
        refuse_moved(solutions, facts, cell)
        changes |= {key: solution.number for key, solution in solutions.items()}
        if all(_is_met(condition, facts, cell) for condition in common.document.conditions):
            yield Cell(name, changes, _overrides(common, changes), loaded)


def _overrides(common: _Common, changes: dict[str, object]) -> tuple[str, ...]:
    return (*common.overrides, *(assign(key, value) for key, value in changes.items()))


def _load(common: _Common, cell: str, changes: dict[str, object], solutions: Mapping[str, Solution]) -> Loaded:
    """The recipe of a cell. Its errors name the cell, and the sweep's line where that stated the field."""
    numbers = {key: solution.number for key, solution in solutions.items()}
    try:
        return common.variants.load(_overrides(common, changes | numbers))
    except RecipeError as error:
        links = {key: solution.link for key, solution in solutions.items()}
        raise UserError(_told(error, common.origins, links, cell)) from None


def _told(error: RecipeError, stated: Mapping[str, Origin], links: Mapping[str, Equation], cell: str) -> str:
    """What a cell's recipe was refused for. To the recipe all fields of a sweep come from the command line."""
    origins = {key: link.origin for key, link in links.items()} | dict(stated)
    place, _, rest = str(error).partition(": ")
    keys = [key.partition(" (")[0] for key in error.keys]
    origin = next((origin for key in keys for stated, origin in origins.items() if overlap(key, stated)), COMMAND_LINE)
    by = "".join(f" ({key} by the link {links[key].text})" for key in keys if key in links)
    return (f"{origin}: {cell}{rest}" if place == str(COMMAND_LINE) else f"{cell}{error}") + by


def _is_met(condition: Expression, facts: Facts, cell: str) -> bool:
    try:
        met = condition.value(facts)
        if not isinstance(met, bool):
            raise Impossible("it is neither true nor false; allowed: a comparison")
        return met
    except Impossible as error:
        raise RecipeError("where", f"{cell}{condition.text}: {error}", condition.origin) from None


def _filters(document: Document) -> str:
    texts = [each.text for each in (*document.links, *document.conditions)]
    return " and ".join(map(shorten, texts)) or "its filters"


def _refuse_equal(cells: Sequence[Cell], origin: Origin) -> None:
    seen: dict[str, str] = {}
    for cell in cells:
        recipe = str(cell.loaded.recipe.model_dump())
        if recipe in seen:
            raise RecipeError("", f"cells {seen[recipe]} and {cell.name} are the same recipe; allowed: each once",
                              origin)
        seen[recipe] = cell.name
    assert len({cell.name for cell in cells}) == len(cells)


