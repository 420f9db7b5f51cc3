"""`upmix lrtransfer RECIPE`: loss over learning rate at several widths, and where the best one moves."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from framework.cli.lists import positive_floats, positive_integers
from framework.cli.names import folder_name
from framework.cli.progress import bar

if TYPE_CHECKING:
    from framework.trials.lr_transfer import Optimum, Point


def command(
    recipe: Annotated[str, typer.Argument(help="a recipe's name or file")],
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="fields to change")] = None,
    widths: Annotated[str, typer.Option(help="values of model.d_model, joined by commas")] = "32,64,128,256",
    lrs: Annotated[str, typer.Option(help="values of optim.lr, joined by commas")] = "1e-3,2e-3,4e-3,8e-3,16e-3,32e-3",
    seeds: Annotated[int, typer.Option(min=1, help="how many seeds are averaged")] = 3,
    name: Annotated[str, typer.Option(help="of the folder of the runs")] = "lrtransfer",
    runs_dir: Annotated[Path, typer.Option(help="where run folders stand")] = Path("runs"),
    at_once: Annotated[int, typer.Option(min=1, help="runs at a time; they share the cores")] = 1,
    as_json: Annotated[bool, typer.Option("--json", help="print one JSON object")] = False,
) -> None:
    """Train the recipe at each width with each learning rate and seed; what is done already is not done again."""
    from framework.trials.lr_figure import draw_transfer
    from framework.trials.lr_transfer import grid, optima, steps_moved
    from framework.trials.over_widths import at_widths, require_trainable

    path = runs_dir / folder_name(name, recipe, "grid")
    chosen = positive_integers("--widths", widths), positive_floats("--lrs", lrs), range(seeds)
    loaded = at_widths(recipe, overrides or [], chosen[0])
    require_trainable(loaded.values())
    points = _run(grid(recipe, overrides or [], *chosen), path, at_once)
    found = optima(points)
    picture = path / "lrtransfer.png"
    kind = loaded[chosen[0][0]].recipe.parametrization.kind
    moved = steps_moved(found) if found else None
    draw_transfer(points, found, f"{recipe}, {kind} parametrization: the best moves {moved} steps", picture)
    if as_json:
        rows = [asdict(point) | {"loss": _finite(point.loss)} for point in points]
        print(json.dumps({"rows": rows, "optima": [asdict(best) for best in found], "steps_moved": moved}))
    else:
        _print(points, found, moved, picture)


def _run(trials: dict, runs_dir: Path, at_once: int) -> list[Point]:
    from framework.trials.lr_transfer import run_grid

    points = []
    with bar("runs", len(trials)) as advance:
        for point in run_grid(trials, runs_dir, at_once):
            points.append(point)
            advance()
    return sorted(points, key=lambda point: (point.width, point.lr, point.seed))


def _finite(loss: float) -> float | None:
    return loss if math.isfinite(loss) else None


def _print(points: list[Point], found: list[Optimum], moved: int | None, picture: Path) -> None:
    lrs, by_place = sorted({point.lr for point in points}), {}
    for point in points:
        by_place.setdefault((point.width, point.lr), []).append(point.loss)
    print(f"{'d_model':>7} " + " ".join(f"{lr:>8g}" for lr in lrs) + f" {'best':>8} {'refined':>8}")
    best: dict[int, Any] = {optimum.width: optimum for optimum in found}
    for width in sorted({point.width for point in points}):
        losses = [by_place[width, lr] for lr in lrs]
        cells = " ".join(f"{sum(seeds) / len(seeds):>8.3f}" for seeds in losses)
        optimum = best.get(width)
        edge = " (edge of the grid)" if optimum and optimum.at_edge else ""
        print(f"{width:>7} {cells} " + (f"{optimum.lr:>8g} {optimum.refined:>8.2g}{edge}" if optimum else "diverged"))
    print(f"the best learning rate moves {moved} steps of the grid\npicture: {picture}")
