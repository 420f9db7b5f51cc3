"""`upmix status [NAME]`: what was submitted, where it stands, and what it waits for."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from framework.cli.slurm_options import Cluster, Remote, RunsDir, host_and_runs

if TYPE_CHECKING:
    from slurm.status import Status


def command(
    name: Annotated[str | None, typer.Argument(help="of a submission or run; default: all")] = None,
    runs_dir: RunsDir = Path("runs"),
    watch: Annotated[bool, typer.Option("--watch", help="go on, every few seconds, until nothing is active")] = False,
    every: Annotated[float, typer.Option(help="seconds between looks", min=0.5)] = 5.0,
    remote: Remote = None,
    cluster: Cluster = None,
    as_json: Annotated[bool, typer.Option("--json", help="print one JSON object")] = False,
) -> None:
    """Print job, state, step, loss, speed, time left and restarts of every run, and why one waits or failed."""
    from slurm.status import status

    host, runs = host_and_runs(remote, cluster, runs_dir)
    if watch:
        _watch(lambda: status(host, runs, name), every)
        return
    found = status(host, runs, name)
    if as_json:
        print(json.dumps({"rows": [asdict(row) for row in found.rows], "silence": found.silence}))
        return
    print("\n".join(_table(found)) or f"{runs}: no run yet")
    if found.silence is not None:
        print(f"upmix: no SLURM answers here ({found.silence}); states are those of the run folders", file=sys.stderr)


def _watch(look, every: float) -> None:
    """Draw the table again and again; where nobody watches a terminal, print it once for each change."""
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    console = Console()
    with Live(console=console, auto_refresh=False, transient=not console.is_terminal) as live:
        before = None
        while True:
            found = look()
            text = "\n".join(_table(found))
            if console.is_terminal:
                live.update(Text(text), refresh=True)
            elif text != before:
                print(text, flush=True)
            before = text
            if not any(row.is_active for row in found.rows):
                return
            time.sleep(every)


def _table(found: Status) -> list[str]:
    header = ("submission", "run", "job", "state", "step", "loss", "tokens/s", "left", "used", "limit", "starts", "")
    rows = [_cells(row) for row in found.rows]
    if not rows:
        return []
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in (header, *rows)]
    return [line.rstrip() for line in lines]


def _cells(row) -> tuple[str, ...]:
    seen = row.progress
    step = loss = speed = left = ""
    if seen is not None:
        step = f"{seen.step:,}" + (f" of {seen.num_steps:,}" if seen.num_steps is not None else "")
        loss = "" if seen.loss is None else f"{seen.loss:.4f}"
        speed = "" if seen.tokens_per_second is None else f"{seen.tokens_per_second:,.0f}"
        left = "" if seen.seconds_left is None or seen.finished else _duration(seen.seconds_left)
    starts = "" if row.restarts is None else str(row.restarts + 1)
    return (row.submission, row.name.rpartition("/")[2], row.job, row.state, step, loss, speed, left, row.elapsed,
            row.limit, starts, row.reason)


def _duration(seconds: float) -> str:
    for unit, name in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= unit:
            return f"{seconds / unit:.1f} {name}"
    return f"{seconds:.0f} s"
