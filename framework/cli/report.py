"""`upmix report RUN...`: curves of runs as pictures and tables."""

from pathlib import Path
from typing import Annotated

import typer


def command(
    runs: Annotated[list[Path], typer.Argument(help="run folders, or folders of run folders")],
    axis: Annotated[str, typer.Option(help="steps, tokens or tokens_per_param")] = "steps",
    metric: Annotated[list[str] | None, typer.Option(help="panel to draw; may be given several times")] = None,
    out: Annotated[Path, typer.Option(help="folder of the pictures")] = Path("report"),
    csv: Annotated[Path | None, typer.Option(help="write every row of every run to this file")] = None,
) -> None:
    """Draw loss curves and expert load of runs; runs that differ by seed are one line with a band."""
    from framework.report import BALANCE, LOSSES, draw_curves, draw_expert_load, load_runs, write_csv

    found = load_runs(runs)
    out.mkdir(parents=True, exist_ok=True)
    print(draw_curves(found, out / "loss.png", axis, metric or LOSSES))
    if any(len(run.series(BALANCE[0])[0]) for run in found):
        print(draw_curves(found, out / "expert_load.png", axis, BALANCE))
    for run in found:
        if picture := draw_expert_load(run, out / f"experts_{run.name}.png", axis):
            print(picture)
    if csv is not None:
        print(write_csv(found, csv))
