"""`upmix sweep show | run`: many recipes from one, looked at and trained here."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from framework.cli.sweep_options import Link, Name, Over, Overrides, Seeds, Source, Tags, Where, arguments

app = typer.Typer(help="Many recipes from one: product, zip, concatenation, links and filters.", no_args_is_help=True)

RunsDir = Annotated[Path, typer.Option(help="the sweep's folder of run folders stands there")]


@app.callback()
def group() -> None:
    """Many recipes from one: product, zip, concatenation, links and filters."""


@app.command("show")
def show(
    source: Source,
    overrides: Overrides = None,
    over: Over = None,
    seeds: Seeds = None,
    link: Link = None,
    where: Where = None,
    tag: Tags = None,
    name: Name = None,
    runs_dir: RunsDir = Path("runs"),
    tflops: Annotated[float | None, typer.Option(
        help="10^12 operations that one GPU does a second; default: 30 % of an H100's 989")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print one JSON object")] = False,
) -> None:
    """Print every cell with its changed fields, parameters, tokens, FLOPs, GPUs and hours. Nothing runs."""
    from framework.errors import UserError
    from framework.sweep import load_sweep
    from framework.sweep.costs import ASSUMED_TERAFLOPS, costs

    if tflops is not None and not 0 < tflops < float("inf"):
        raise UserError(f"--tflops {tflops:g}; allowed: a number above 0")
    sweep = load_sweep(source, arguments(overrides, over, seeds, link, where, tag, name))
    found = costs(sweep, runs_dir, tflops or ASSUMED_TERAFLOPS)
    if as_json:
        cells = [{"name": cell.name, "changes": cell.changes, **asdict(cost)}
                 for cell, cost in zip(sweep.cells, found, strict=True)]
        print(json.dumps({"name": sweep.name, "recipe": sweep.recipe, "cells": cells}))
        return
    from framework.cli.sweep_table import print_costs

    print_costs(sweep, found, runs_dir, tflops)


@app.command("run")
def run(
    source: Source,
    overrides: Overrides = None,
    over: Over = None,
    seeds: Seeds = None,
    link: Link = None,
    where: Where = None,
    tag: Tags = None,
    name: Name = None,
    runs_dir: RunsDir = Path("runs"),
    at_once: Annotated[int, typer.Option(min=1, help="cells at a time; they share the cores")] = 1,
) -> None:
    """Train every cell here; what is finished is not run again, what was interrupted goes on. Exit 1 if one failed."""
    from framework.cli.sweep_live import follow
    from framework.sweep import load_sweep
    from framework.sweep.run import run_sweep

    sweep = load_sweep(source, arguments(overrides, over, seeds, link, where, tag, name))
    failures = follow(sweep, runs_dir / sweep.name, run_sweep(sweep, runs_dir, at_once))
    for cell, said in failures.items():
        print(f"upmix: {cell}: {said}", file=sys.stderr)
    sys.exit(1 if failures else 0)
