"""Links between fields: equations that give a field its value, or that a cell must fulfil."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from framework.recipe.errors import RecipeError
from framework.sweep.expression import Equation
from framework.sweep.fields import LENGTHS, SIZES, Facts
from framework.sweep.numbers import Impossible
from framework.sweep.solve import holds, recipe_number, solve

if TYPE_CHECKING:
    from framework.recipe import Loaded

DERIVED = (*SIZES, *LENGTHS)


def settle_links(
    links: Sequence[Equation], stated: Mapping[str, object], changes: Mapping[str, object],
    load: Callable[[dict[str, object]], Loaded], cell: str,
) -> dict[str, tuple[int | float, Equation]] | None:
    """The fields that the links solve for, and the link of each; None where one that leaves none open does not hold.

    stated: values of all fields that the sweep states in this cell; changes: those of them that its axes do. A link is
    solved as soon as it leaves one field open, in whatever order they were given. load: the recipe with some changes,
    asked for where a link names sizes. Raises RecipeError where one leaves several open, or has no solution.
    """
    values, solved, by = dict(stated), {}, {}
    waiting = list(links)
    while waiting:
        ready = next((link for link in waiting if len(_open(link, values)) < 2), None)
        if ready is None:
            raise _many_open(waiting[0], values, cell)
        waiting.remove(ready)
        found = _settle(ready, values, lambda: load({**changes, **solved}), cell)  # noqa: B023 (called at once)
        if found is False:
            return None
        if found is not True:
            key, number = found
            values[key] = solved[key] = number
            by[key] = number, ready
    return by


def _settle(
    link: Equation, values: Mapping[str, object], load: Callable[[], Loaded], cell: str,
) -> tuple[str, int | float] | bool:
    """The solution of a link, or whether it holds where it leaves nothing open."""
    unknown = next(iter(_open(link, values)), None)
    try:
        facts = Facts(load()) if any(name in DERIVED for name in link.names) else None

        def lookup(name: str) -> object:
            return facts(name) if name in DERIVED else values[name]

        if unknown is None:
            return holds(link, lookup)
        if link.names.count(unknown) > 1:
            raise Impossible(f"{unknown} stands in it twice; allowed: once")
        return unknown, recipe_number(solve(link, unknown, lookup))
    except Impossible as error:
        raise RecipeError("link", f"{cell}{link.text}: {error}", link.origin) from None


def _open(link: Equation, values: Mapping[str, object]) -> list[str]:
    """The fields of a link that nothing states."""
    return [name for name in dict.fromkeys(link.names) if name not in values and name not in DERIVED]


def _many_open(link: Equation, values: Mapping[str, object], cell: str) -> RecipeError:
    names = " and ".join(_open(link, values))
    return RecipeError("link", f"{cell}{link.text}: nothing states {names}; allowed: one field open, the others by "
                       "over, set or key=value", link.origin)
