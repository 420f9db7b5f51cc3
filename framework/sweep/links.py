"""Links between fields: equations that give a field its value, or that a cell must fulfil."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from framework.recipe.errors import RecipeError
from framework.sweep.expression import Equation
from framework.sweep.fields import LENGTHS, SIZES, Facts
from framework.sweep.numbers import Impossible
from framework.sweep.solve import holds, recipe_number, solve

if TYPE_CHECKING:
    from framework.recipe import Loaded

DERIVED = (*SIZES, *LENGTHS)


@dataclass(frozen=True)
class Solution:
    """What a link gave a field. sizes: of the recipe without it, by the names that the link has of them."""

    number: int | float
    link: Equation
    sizes: Mapping[str, object]


def settle_links(
    links: Sequence[Equation], stated: Mapping[str, object], load: Callable[[dict[str, Solution]], Loaded], cell: str,
) -> dict[str, Solution] | None:
    """The fields that the links solve for; None where a link that leaves no field open does not hold.

    stated: values of all fields that the sweep states in this cell. A link is solved as soon as it leaves one field
    open, in whatever order they were given. load: the cell's recipe with some solutions, asked for where a link names
    sizes. Raises RecipeError where one leaves several fields open, or has no solution.
    """
    values, found, waiting = dict(stated), {}, list(links)
    while waiting:
        ready = next((link for link in waiting if len(_open(link, values)) < 2), None)
        if ready is None:
            raise _many_open(waiting[0], values, cell)
        waiting.remove(ready)
        unknown = next(iter(_open(ready, values)), None)
        try:
            sizes = _sizes(ready, lambda: load(dict(found)))
            known = values | sizes
            if unknown is not None:
                found[unknown] = Solution(recipe_number(solve(ready, unknown, known.__getitem__)), ready, sizes)
                values[unknown] = found[unknown].number
            elif not holds(ready, known.__getitem__):
                return None
        except Impossible as error:
            raise RecipeError("link", f"{cell}{ready.text}: {error}", ready.origin) from None
    return found


def refuse_moved(solutions: Mapping[str, Solution], facts: Facts, cell: str) -> None:
    """Raise RecipeError where a solution changes the sizes that it was computed from. facts: of the whole cell."""
    for key, solution in solutions.items():
        for name, before in solution.sizes.items():
            if facts(name) != before:
                raise RecipeError("link", f"{cell}{solution.link.text}: {name} depends on {key} in turn; allowed: "
                                  "sizes that stay", solution.link.origin)


def _sizes(link: Equation, load: Callable[[], Loaded]) -> dict[str, object]:
    """The sizes that a link names."""
    names = [name for name in link.names if name in DERIVED]
    if not names:
        return {}
    facts = Facts(load())
    return {name: facts(name) for name in names}


def _open(link: Equation, values: Mapping[str, object]) -> list[str]:
    """The fields of a link that nothing states."""
    return [name for name in dict.fromkeys(link.names) if name not in values and name not in DERIVED]


def _many_open(link: Equation, values: Mapping[str, object], cell: str) -> RecipeError:
    names = " and ".join(_open(link, values))
    return RecipeError("link", f"{cell}{link.text}: nothing states {names}; allowed: one field open, the others by "
                       "over, set or key=value", link.origin)
