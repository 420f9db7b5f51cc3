"""Going through layouts: each on live ranks of this machine, against one rank."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from framework.equivalence.compare import Row, compare
from framework.equivalence.measure import Measured, Refused, measure
from framework.equivalence.shrink import shrink_recipe
from framework.errors import UserError
from framework.recipe import Loaded, require_runnable
from framework.recipe.schema import Parallel
from parallel.pool import RankError

if TYPE_CHECKING:
    from framework.equivalence.layouts import Layout
    from parallel import RankPool

SECONDS_A_LAYOUT = 600.0


def check_layouts(loaded: Loaded, layouts: Sequence[Layout], dtype: str, pool: RankPool) -> Iterator[Row]:
    """Yield the row of each layout, in order. What one rank gives is measured once for each depth that layouts need.

    dtype: float32 or float64. Raises UserError for a layout that the recipe cannot take, before anything runs where
    that is known by then.
    """
    small = [shrink_recipe(loaded, layout) for layout in layouts]
    for each in small:
        require_runnable(each)
    references: dict[str, Measured] = {}
    for layout, each in zip(layouts, small, strict=True):
        expected = _reference(each, dtype, pool, references)
        begin = time.perf_counter()
        got = _run(layout.name, layout.num_ranks, each, dtype, pool)
        yield compare(layout.name, layout.num_ranks, got, expected, time.perf_counter() - begin)


def _reference(small: Loaded, dtype: str, pool: RankPool, known: dict[str, Measured]) -> Measured:
    recipe = small.recipe
    alone = recipe.model_copy(update={
        "parallel": Parallel(), "data": recipe.data.model_copy(update={"micro_batch_size": None}),
    })
    key = alone.model_dump_json()
    if key not in known:
        known[key], = _run("of one rank", 1, Loaded(alone, small.origins, small.architecture), dtype, pool)
    return known[key]


def _run(name: str, num_ranks: int, small: Loaded, dtype: str, pool: RankPool) -> list[Measured]:
    try:
        parts = pool.run(num_ranks, measure, small, dtype, timeout=SECONDS_A_LAYOUT)
    except RankError as error:
        raise RankError(f"layout {name}: {error}") from None
    for part in parts:
        if isinstance(part, Refused):
            raise UserError(f"layout {name}: {part.reason}")
    return [part for part in parts if part is not None]
