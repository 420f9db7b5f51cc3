"""Which numbers of a recipe are searched for, how a trial states them, and the fragment that carries what was found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import yaml

from framework.errors import UserError
from framework.recipe import Recipe, RecipeError, load_recipe, parameters
from framework.recipe.parameters import FAMILIES, family_of
from framework.recipe.validate import validate
from framework.trials.rate_search import Point

if TYPE_CHECKING:
    from framework.recipe import Loaded

COMPONENTS = ("embedding", "unembedding", "router", "expert", "attention", "ffn", "ssm")
"""What has rates of its own: the parts of the published sets, and state-space layers, which those models have not."""

BASE = ("optim.lr", "optim.final_lr_fraction")
RATES = "optim.relative_lr"
NEUTRAL_WHERE_ABSENT = (RATES, "parametrization.init.relative_std")
DEFAULT = "default"
"""In `--search`: the fields that are searched without it."""


@dataclass(frozen=True)
class Field:
    """A number of the recipe by its dotted key, and where its search starts."""

    key: str
    start: float

    @property
    def name(self) -> str:
        """Short, for tables and pictures: embedding.start, lr."""
        return self.key.removeprefix(f"{RATES}.").removeprefix("optim.").removeprefix("parametrization.")

    @property
    def is_ratio(self) -> bool:
        """Whether it is a relative rate, whose neutral value is 1."""
        return self.key.startswith(f"{RATES}.")

    def value(self, times: Fraction) -> float:
        """So many times the start, to six digits: what trials, fragment and tables all say."""
        return float(f"{self.start * float(times):.6g}")


@dataclass(frozen=True)
class Searched:
    """A recipe with the fields that are searched in it."""

    recipe: str
    overrides: tuple[str, ...]
    loaded: Loaded
    fields: tuple[Field, ...]

    def values(self, point: Point) -> dict[str, float]:
        """By dotted key, what a point stands for."""
        return {field.key: field.value(times) for field, times in zip(self.fields, point, strict=True)}

    def trial_overrides(self, point: Point) -> tuple[str, ...]:
        """The given overrides, with those fields stated, or stated anew, that are not at their start."""
        moved = {field.key: field.value(times) for field, times in zip(self.fields, point, strict=True) if times != 1}
        return _with(self.overrides, moved)

    def allows(self, field: int, times: Fraction) -> bool:
        """Whether the recipe can be with a field at so many times its start (a fraction of 1.5 cannot)."""
        key, value = self.fields[field].key, self.fields[field].value(times)
        try:
            validate(Recipe, _merged(self.loaded.recipe.model_dump(), key, value))
        except RecipeError:
            return False
        return True


def find_fields(recipe: str, overrides: Sequence[str], search: str | None) -> Searched:
    """The recipe, and the fields to search in it.

    search: None for the base learning rate, its final fraction, and start and end of every COMPONENTS that the model
    has; or fields joined by commas: dotted keys of positive numbers, a role or family for its start and end both,
    `default` for all of the above. Raises UserError for what is no positive number, and for ends without a decay.
    """
    loaded = load_recipe(recipe, overrides)
    roles = list(dict.fromkeys(row.role for row in parameters(loaded.architecture)))
    present = roles + [family for family in FAMILIES if family in map(family_of, roles)]
    keys = [key for word in (search or DEFAULT).split(",") for key in _keys(word.strip(), present)]
    fields = tuple(Field(key, _start(recipe, overrides, loaded, key)) for key in dict.fromkeys(keys))
    optim = loaded.recipe.optim
    ends = [field.key for field in fields if field.key.startswith(f"{RATES}.") and field.key.endswith(".end")]
    if ends and (optim.schedule == "constant" or optim.final_lr_fraction == 0):
        given = "schedule constant" if optim.schedule == "constant" else "final_lr_fraction 0"
        raise UserError(f"{ends[0]}: cannot matter with optim.{given}; allowed: a schedule that decays to a fraction "
                        "above 0, or --search without ends")
    return Searched(recipe, tuple(overrides), loaded, fields)


def fragment(searched: Searched, point: Point, comment: Sequence[str]) -> str:
    """A YAML fragment for `extends`: what a point found, over the recipe's other relative rates."""
    tree: dict[str, Any] = {}
    rules = searched.loaded.recipe.optim.relative_lr
    for role, rule in rules.items():
        tree |= _merged(tree, f"{RATES}.{role}.start", rule.start)
        tree |= _merged(tree, f"{RATES}.{role}.end", rule.end)
    for key, value in searched.values(point).items():
        tree |= _merged(tree, key, value)
    text = yaml.safe_dump(tree, sort_keys=False, default_flow_style=False)
    return "".join(f"# {line}\n" for line in comment) + text


def _keys(word: str, present: Sequence[str]) -> list[str]:
    if word == DEFAULT:
        return [*BASE, *(key for name in COMPONENTS if name in present for key in _ends(name))]
    return _ends(word) if word in present else [word]


def _ends(name: str) -> list[str]:
    return [f"{RATES}.{name}.start", f"{RATES}.{name}.end"]


def _start(recipe: str, overrides: Sequence[str], loaded: Loaded, key: str) -> float:
    value = _at(loaded.recipe.model_dump(), key)
    if value is None:
        # An unknown key or role is refused here, in the words of recipes.
        stated = _at(load_recipe(recipe, _with(overrides, {key: 1.0})).recipe.model_dump(), key)
        value = stated if key.startswith(tuple(f"{section}." for section in NEUTRAL_WHERE_ABSENT)) else None
    if not isinstance(value, float) or value <= 0:
        raise UserError(f"--search {key}: the recipe has {'null' if value is None else value} there; allowed: fields "
                        "that hold a number above 0, which may be a fraction")
    return value


def _at(tree: Any, key: str) -> Any:
    """What stands at a dotted key; None where nothing does."""
    for part in key.split("."):
        tree = tree.get(part) if isinstance(tree, Mapping) else None
    return tree


def _with(overrides: Sequence[str], values: Mapping[str, float]) -> tuple[str, ...]:
    """The overrides with some keys stated, in place of earlier statements of them: a key may be given once."""
    kept = [text for text in overrides if text.partition("=")[0].strip() not in values]
    return (*kept, *(f"{key}={value!r}" for key, value in values.items()))


def _merged(tree: dict[str, Any], key: str, value: float) -> dict[str, Any]:
    """The tree with a value at a dotted key."""
    first, _, rest = key.partition(".")
    return tree | {first: _merged(tree.get(first, {}), rest, value) if rest else value}
