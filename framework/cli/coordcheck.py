"""`upmix coordcheck RECIPE`: whether a model's coordinates move as far at every width."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from framework.cli.lists import positive_integers
from framework.cli.pictures import picture
from framework.cli.progress import bar

if TYPE_CHECKING:
    from framework.trials.coordinates import Slope


def command(
    recipe: Annotated[str, typer.Argument(help="a recipe's name or file")],
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="fields to change")] = None,
    widths: Annotated[str, typer.Option(help="values of model.d_model, joined by commas")] = "64,128,256,512",
    steps: Annotated[int, typer.Option(min=1, help="optimizer steps")] = 10,
    seeds: Annotated[int, typer.Option(min=1, help="how many initialisations are averaged")] = 3,
    sequences: Annotated[int, typer.Option(min=1, help="of a step, each of data.seq_len tokens")] = 2,
    plot: Annotated[Path, typer.Option(help="where the picture goes")] = Path("runs/coordcheck.png"),
    as_json: Annotated[bool, typer.Option("--json", help="print one JSON object")] = False,
) -> None:
    """Train the recipe for some steps at each width; exit 1 where a role's outputs move more, or less, as it widens."""
    from framework.trials.coordinate_figure import draw_coordinates
    from framework.trials.coordinates import measure_widths, slopes
    from framework.trials.over_widths import at_widths, for_check

    loaded = at_widths(recipe, for_check(recipe, overrides or []), positive_integers("--widths", widths))
    with picture(plot, "--plot"):
        with bar("widths x seeds", len(loaded) * seeds) as advance:
            measured = measure_widths(loaded, steps, sequences, range(seeds), advance)
        rows = slopes(measured)
        kind = next(iter(loaded.values())).recipe.parametrization.kind
        draw_coordinates(measured, rows, f"{recipe}, {kind} parametrization", plot)
    passed = all(row.passes for row in rows)
    if as_json:
        print(json.dumps({"passed": passed, "rows": [_plain(row) for row in rows]}))
    else:
        _print(rows, sorted(measured), plot)
    sys.exit(0 if passed else 1)


def _plain(row: Slope) -> dict[str, object]:
    slope = None if math.isnan(row.slope) else row.slope
    return {"role": row.role, "quantity": row.quantity, "slope": slope, "sizes": row.sizes, "passed": row.passes}


def _print(rows: list[Slope], widths: list[int], plot: Path) -> None:
    from framework.trials.coordinates import ALLOWED_SLOPE

    print(f"{'role':<22} {'quantity':<9} {'slope':>6} " + " ".join(f"{width:>9}" for width in widths))
    for row in sorted(rows, key=lambda row: row.quantity):
        sizes = " ".join(f"{size:>9.2e}" for size in row.sizes)
        print(f"{row.role:<22} {row.quantity:<9} {row.slope:>+6.2f} {sizes}{'' if row.passes else '  FAILS'}")
    print(f"allowed: slopes of change within {ALLOWED_SLOPE:g}; the others are reported alone\npicture: {plot}")
