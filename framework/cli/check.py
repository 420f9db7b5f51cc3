"""`upmix check parallel RECIPE`: does every layout train as one rank does?"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from framework.cli.progress import bar

if TYPE_CHECKING:
    from rich.table import Table

    from framework.equivalence import Layout, Row
    from framework.equivalence.compare import Tolerance
    from framework.recipe import Loaded

app = typer.Typer(help="Prove on this machine what training relies on.", no_args_is_help=True)
TABLE_WIDTH = 160  # where the output is no terminal


class Precision(StrEnum):
    float32 = "float32"
    float64 = "float64"


@app.callback()
def group() -> None:
    """Prove on this machine what training relies on."""


@app.command("parallel")
def parallel(
    recipe: Annotated[str, typer.Argument(help="a recipe's name or file")],
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="fields to change")] = None,
    layouts: Annotated[str | None, typer.Option(help="names joined by commas, as tp2,dp_shard2xep2,pp2-zb")] = None,
    dtype: Annotated[Precision, typer.Option(help="of weights and all that is computed")] = Precision.float32,
    as_json: Annotated[bool, typer.Option("--json", help="print one JSON object")] = False,
) -> None:
    """Train a recipe, shrunk by rule, on one rank and on each layout; exit 1 where a layout is out of tolerance."""
    from framework.recipe import load_recipe

    loaded = load_recipe(recipe, overrides or [])
    chosen = _all_that_can(loaded, dtype.value) if layouts is None else _named(layouts, dtype.value)
    rows = _rows(loaded, chosen, dtype.value)

    from framework.equivalence import TOLERANCES

    tolerance = TOLERANCES[dtype.value]
    if as_json:
        print(json.dumps({"rows": [asdict(row) for row in rows]}))
    else:
        _print(rows, tolerance)
    if all(row.passes(tolerance) for row in rows):
        return
    if dtype == Precision.float32:
        print("out of tolerance in float32, where rounding may flip a nearly tied choice of experts: --dtype float64 "
              "tells whether that is all", file=sys.stderr)
    sys.exit(1)


def _named(names: str, dtype: str) -> list[Layout]:
    from framework.equivalence import parse_layout, require_engine
    from framework.errors import UserError

    given = list(dict.fromkeys(name.strip() for name in names.split(",")))
    if "" in given:
        raise UserError(f"--layouts {names!r}: a name is empty; allowed: names joined by commas, as tp2,dp_shard2xep2")
    layouts = [parse_layout(name) for name in given]
    for layout in layouts:
        require_engine(layout, dtype)
    return layouts


def _all_that_can(loaded: Loaded, dtype: str) -> list[Layout]:
    """The layouts of the list that this recipe and what is installed here admit; a line for each other one."""
    from framework.equivalence import DEFAULT_LAYOUTS, parse_layout, require_engine, shrink_recipe
    from framework.errors import UserError

    chosen = []
    for layout in map(parse_layout, DEFAULT_LAYOUTS):
        try:
            require_engine(layout, dtype)
            shrink_recipe(loaded, layout)
            chosen.append(layout)
        except UserError as error:
            print(f"left out: {error}", file=sys.stderr)
    return chosen


def _rows(loaded: Loaded, layouts: list[Layout], dtype: str) -> list[Row]:
    """The table's rows, with a bar on a terminal's standard error while they come."""
    from framework.equivalence import check_layouts
    from parallel import RankPool
    from parallel.pool import RankError

    pool, rows = RankPool(), []
    try:
        with bar("layouts", len(layouts)) as advance:
            for row in check_layouts(loaded, layouts, dtype, pool):
                rows.append(row)
                advance()
        return rows
    except RankError as error:
        print(f"upmix: {error}", file=sys.stderr)
        sys.exit(1)
    finally:
        pool.close()


def _print(rows: list[Row], tolerance: Tolerance) -> None:
    from rich.console import Console

    console = Console()
    (console if console.is_terminal else Console(width=TABLE_WIDTH)).print(_table(rows, tolerance))
    for row in rows:
        if not row.update_difference <= tolerance.update:
            print(f"{row.layout}: the update of {row.update_parameter} differs most")
        if row.untouched_parameters:
            print(f"{row.layout}: without gradient or update: {', '.join(row.untouched_parameters)}")
        if row.excused_experts:
            print(f"{row.layout}: excused, since no token reached them: experts {', '.join(row.excused_experts)}")
    print(f"tolerances: loss {tolerance.loss:g}, gradient {tolerance.gradient:g}, update {tolerance.update:g}")


def _table(rows: list[Row], tolerance: Tolerance) -> Table:
    from rich.box import SIMPLE
    from rich.table import Table

    from framework.equivalence.compare import AFTER

    table = Table(box=SIMPLE)
    table.add_column("layout", no_wrap=True)
    for name in ("ranks", *(f"loss after {steps}" for steps in AFTER), "gradient"):
        table.add_column(name, justify="right")
    table.add_column("of", overflow="fold")
    for name in ("update", "untouched", "seconds"):
        table.add_column(name, justify="right")
    table.add_column("equal")
    for row in rows:
        table.add_row(
            row.layout, str(row.num_ranks), *(f"{difference:.1e}" for difference in row.loss_differences),
            f"{row.gradient_difference:.1e}", row.gradient_parameter.replace("[", r"\["),
            f"{row.update_difference:.1e}", str(len(row.untouched_parameters)), f"{row.seconds:.1f}",
            "yes" if row.passes(tolerance) else "NO",
        )
    return table
