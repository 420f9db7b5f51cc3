"""`upmix laws`: what scaling laws say, where their optima lie, and fits of them to runs."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from framework.cli.pictures import picture
from framework.cli.progress import bar

if TYPE_CHECKING:
    from framework.laws import Answer

app = typer.Typer(help="Scaling laws: predictions, optima, comparisons, and fits to runs.", no_args_is_help=True,
                  rich_markup_mode=None)

LawName = Annotated[str, typer.Argument(help="a law that `upmix laws list` names")]
Numbers = Annotated[list[str] | None, typer.Argument(metavar="[NAME=VALUE]...", help="as tokens=1e9")]
Curves = Annotated[list[str], typer.Argument(
    metavar="LAW... NAME=RANGE [NAME=VALUE]...",
    help="LAW[@SET or FILE][,NAME=VALUE...]; a range as flops=1e18..1e22 or tokens=1e9,2e9")]
Coefficients = Annotated[str | None, typer.Option(help="a file that `upmix laws fit` wrote, or a published set's name")]
AsJson = Annotated[bool, typer.Option("--json", help="print one JSON object")]


@app.command("list")
def list_laws(as_json: AsJson = False) -> None:
    """The laws, and where they were published."""
    from framework.laws import LAWS

    if as_json:
        print(json.dumps({"laws": [{"name": law.name, "title": law.title, "source": law.source}
                                   for law in LAWS.values()]}, indent=1))
        return
    for law in LAWS.values():
        print(f"{law.name:<19} {law.title}")


@app.command()
def show(law: LawName) -> None:
    """A law's formula, definitions, numbers, published coefficients and the range of its runs."""
    from framework.laws.describe import describe

    print(describe(law))


@app.command()
def predict(law: LawName, numbers: Numbers = None, coefficients: Coefficients = None, as_json: AsJson = False) -> None:
    """What a law says at one point."""
    from framework.laws import predict
    from framework.laws.values import parse

    _tell(predict(law, parse(numbers or []), coefficients), as_json)


@app.command()
def optimum(
    law: LawName,
    numbers: Numbers = None,
    coefficients: Coefficients = None,
    recipe: Annotated[Path | None, typer.Option(help="write a recipe of the optimum to this .yaml file")] = None,
    base: Annotated[str | None, typer.Option(help="--recipe: a recipe for all that the law does not say")] = None,
    as_json: AsJson = False,
) -> None:
    """The model and the training of least loss under limits, as flops=1e20."""
    from framework.laws.recipe import best, write_recipe
    from framework.laws.values import parse

    answer, given = best(law, parse(numbers or []), coefficients, base)
    if recipe is not None:
        write_recipe(answer, given, recipe, base, coefficients)
    _tell(answer, as_json)
    if recipe is not None and not as_json:
        print(f"recipe: {recipe}")


@app.command()
def compare(curves: Curves, coefficients: Coefficients = None, as_json: AsJson = False) -> None:
    """Laws or coefficients side by side; over flops, what each saves against the first."""
    from framework.laws.compare import compare
    from framework.laws.describe import comparison_table

    found = compare(curves, coefficients)
    print(json.dumps(found.plain(), indent=1) if as_json else comparison_table(found))


@app.command()
def plot(
    curves: Curves,
    coefficients: Coefficients = None,
    out: Annotated[Path, typer.Option(help="where the picture goes")] = Path("laws.png"),
) -> None:
    """Draw laws or coefficients over a range."""
    from framework.laws.compare import compare
    from framework.laws.figure import POINTS_PER_DECADE, draw_comparison

    with picture(out, "--out"):
        print(draw_comparison(compare(curves, coefficients, POINTS_PER_DECADE), out))


@app.command()
def fit(
    law: LawName,
    runs: Annotated[list[Path] | None, typer.Argument(help="run folders, or folders of run folders")] = None,
    csv: Annotated[Path | None, typer.Option(help="runs as a table instead: the law's numbers, and loss")] = None,
    metric: Annotated[str, typer.Option(help="of run folders: loss (training, smoothed) or val_loss")] = "loss",
    out: Annotated[Path, typer.Option(help="where the coefficients go")] = Path("coefficients.json"),
    plot: Annotated[Path | None, typer.Option(help="draw the fit beside its runs")] = None,
    replicates: Annotated[int, typer.Option(min=20, max=10000, help="of the bootstrap")] = 200,
    seed: Annotated[int, typer.Option(min=0, help="of the bootstrap")] = 0,
    as_json: AsJson = False,
) -> None:
    """Fit a law's coefficients to runs, with 90 % intervals, for `--coefficients` of the other commands."""
    from framework.files import new_file
    from framework.laws.coefficients import write_coefficients
    from framework.laws.describe import fit_table
    from framework.laws.figure import draw_fit
    from framework.laws.fit.fit_runs import fit_runs, num_steps
    from framework.laws.fit.observations import read

    form, observations, left_out = read(law, runs or [], csv, metric)
    _warn(left_out)
    with ExitStack() as stack:
        stack.enter_context(new_file(out, "--out"))
        if plot is not None:
            stack.enter_context(picture(plot, "--plot"))
        with bar("descents", num_steps(replicates)) as progress:
            fitted = fit_runs(form, observations, replicates, seed, progress)
        write_coefficients(out, fitted.content)
        if plot is not None:
            draw_fit(fitted, plot)
    shown = {name: value for name, value in fitted.content.items() if name != "samples"}
    print(json.dumps(shown | {"out": str(out)}, indent=1) if as_json else fit_table(fitted, out))


def _tell(answer: Answer, as_json: bool) -> None:
    from framework.laws.describe import answer_table

    if as_json:
        print(json.dumps(answer.plain(), indent=1))
        return
    _warn(answer.warnings)
    print(answer_table(answer))


def _warn(lines: Iterable[str]) -> None:
    for line in lines:
        print(f"warning: {line}", file=sys.stderr)
