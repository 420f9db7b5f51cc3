"""`upmix report RUN...`: curves of runs as pictures and tables."""

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from framework.report import Run


def command(
    runs: Annotated[list[Path], typer.Argument(help="run folders, or folders of run folders")],
    axis: Annotated[str, typer.Option(help="steps, tokens or tokens_per_param")] = "steps",
    metric: Annotated[list[str] | None, typer.Option(help="panel to draw; may be given several times")] = None,
    out: Annotated[Path, typer.Option(help="folder of the pictures")] = Path("report"),
    csv: Annotated[Path | None, typer.Option(help="write every row of every run to this file")] = None,
) -> None:
    """Draw loss curves and expert load of runs; runs that differ by seed are one line with a band."""
    from framework.files import writable
    from framework.report import load_runs, write_csv

    found = load_runs(runs)
    with contextlib.ExitStack() as stack:
        stack.enter_context(writable(out / "loss.png", "--out a folder that may be written"))
        if csv is not None:
            stack.enter_context(writable(csv, "--csv a file that may be written"))
        _draw(found, out, axis, metric)
        if csv is not None:
            print(write_csv(found, csv))


def _draw(runs: Sequence["Run"], out: Path, axis: str, metrics: Sequence[str] | None) -> None:
    from framework.report import BALANCE, LOSSES, draw_curves, draw_expert_load

    print(draw_curves(runs, out / "loss.png", axis, metrics or LOSSES))
    if any(len(run.series(BALANCE[0])[0]) for run in runs):
        print(draw_curves(runs, out / "expert_load.png", axis, BALANCE))
    for run in runs:
        if picture := draw_expert_load(run, out / f"experts_{run.name}.png", axis):
            print(picture)
