"""From a recipe's name and overrides to the typed recipe, with the origin of every value."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from framework.recipe.architecture import Architecture, architecture, variants
from framework.recipe.auto_lr import KEY as LEARNING_RATE
from framework.recipe.auto_lr import law_rate, without_auto
from framework.recipe.check import check
from framework.recipe.errors import DEFAULT, Origin, RecipeError, shorten
from framework.recipe.exclusive import settle_exclusive
from framework.recipe.files import display, find, read_text
from framework.recipe.schema import FORMAT, Recipe
from framework.recipe.settle_model import settle_model
from framework.recipe.tree import merge, override, walk
from framework.recipe.validate import schema_keys, validate
from framework.recipe.yaml_reader import Entry, plain, read_yaml

NOT_INHERITED = ("format", "description", "extends")


@dataclass(frozen=True)
class Loaded:
    """A recipe, where each of its values came from by dotted key, and the model's architecture."""

    recipe: Recipe
    origins: dict[str, Origin]
    architecture: Architecture


def load_recipe(name_or_path: str, overrides: Sequence[str] = ()) -> Loaded:
    """Find, read, extend, override, validate and check a recipe.

    name_or_path: a path under recipes/ without suffix, or a .yaml file. overrides: `a.b.c=value`, the value in YAML.
    `extends` names one recipe or several; a later one, then the file itself, then the overrides take precedence.
    Raises RecipeError: one line with the place, the key, what was given and what is allowed.
    """
    return read_variants(name_or_path).load(overrides)


@dataclass(frozen=True)
class Variants:
    """A recipe read once, to be loaded many times with other overrides.

    place: its file, as messages show it. tree: of the file and all that it extends. level: that of the overrides.
    """

    place: str
    tree: Entry
    level: int

    def load(self, overrides: Sequence[str] = ()) -> Loaded:
        """Override, validate and check. Raises RecipeError as `load_recipe`."""
        tree = override(self.tree, overrides, self.level)
        stated = dict(walk(tree))
        origins = {key: entry.origin for key, entry in stated.items()}
        try:
            return _resolve(tree, stated, origins)
        except RecipeError as error:
            raise error.located(origins, Origin(self.place)) from None


def read_variants(name_or_path: str) -> Variants:
    """Find and read a recipe and all that it extends. Raises RecipeError."""
    path = find(str(name_or_path))
    layers = _read_layers(path, chain=())
    tree = layers[0]
    for level, layer in enumerate(layers[1:], start=1):
        tree = merge(tree, _at_level(layer, level))
    return Variants(display(path), tree, level=len(layers))


def read_description(name: str) -> str:
    """The one-line description that a recipe's own file gives, without checking the rest."""
    tree = read_yaml(read_text(find(name)), name, 0)
    entry = tree.value.get("description") if isinstance(tree.value, dict) else None
    return str(entry.value) if entry else ""


def _resolve(tree: Entry, stated: dict[str, Entry], origins: dict[str, Origin]) -> Loaded:
    level = {key: entry.level for key, entry in stated.items()}
    values, replaced = settle_exclusive(plain(tree), level)
    values, is_auto = without_auto(values)
    recipe = validate(Recipe, values)
    if recipe.format != FORMAT:
        raise RecipeError("format", f"given {recipe.format}; allowed: {FORMAT}")
    model, replaced_sizes = settle_model(recipe.model, level)
    recipe = recipe.model_copy(update={"model": model})
    variants(model)
    structure = architecture(model)
    found = _defaults() | origins
    if is_auto:
        rate, how = law_rate(structure, recipe.parametrization)
        recipe = recipe.model_copy(update={"optim": recipe.optim.model_copy(update={"lr": rate})})
        found[LEARNING_RATE] = Origin(f"{how}, {origins[LEARNING_RATE]}")
    check(recipe, structure)
    for key, by in (replaced | replaced_sizes).items():
        found[key] = Origin(f"{'replaced by' if key in origins else 'kept from'} {by}, {origins[by]}")
    return Loaded(recipe, found, structure)


@cache
def _defaults() -> dict[str, Origin]:
    """Every field as one that nobody stated."""
    return {key: DEFAULT for key in schema_keys(Recipe)}


def _read_layers(path: Path, chain: tuple[Path, ...]) -> list[Entry]:
    """The file's own tree, after those of everything it extends."""
    place = display(path)
    tree = read_yaml(read_text(path), place, 0)
    if not isinstance(tree.value, dict):
        given = "an empty file" if tree.value is None else f"given {shorten(tree.value)}"
        raise RecipeError((), f"{given}; allowed: a mapping with model, data, optim, training, ...", Origin(place))
    own = dict(tree.value)
    bases = _bases(own.pop("extends", None))
    chain = (*chain, path.resolve())
    layers: list[Entry] = []
    for base, origin in bases:
        found = find(base, path.parent, origin)
        if found.resolve() in chain:
            raise RecipeError("extends", f"{base} extends this file in turn; allowed: no circle", origin)
        for layer in _read_layers(found, chain):
            inherited = {key: entry for key, entry in layer.value.items() if key not in NOT_INHERITED}
            layers.append(Entry(inherited, layer.origin, layer.level))
    return [*layers, Entry(own, tree.origin, 0)]


def _bases(entry: Entry | None) -> list[tuple[str, Origin]]:
    if entry is None:
        return []
    names = entry.value if isinstance(entry.value, tuple) else (entry.value,)
    if not names or not all(isinstance(name, str) for name in names):
        raise RecipeError("extends", f"given {shorten(plain(entry))}; allowed: a recipe's name, a .yaml file, "
                          "or a list of them", entry.origin)
    return [(name, entry.origin) for name in names]


def _at_level(entry: Entry, level: int) -> Entry:
    value = entry.value
    if isinstance(value, dict):
        value = {key: _at_level(inner, level) for key, inner in value.items()}
    return Entry(value, entry.origin, level)
