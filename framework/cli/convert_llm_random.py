"""`upmix convert from-llm-random|from-nano`: checkpoints of the research code of llm-random and nano, to a new run."""

from pathlib import Path
from typing import Annotated

import typer

from framework.cli.imports import AsJson, Name, Overrides, RunsDir, run_path, tell


def register(app: typer.Typer) -> None:
    """Add both commands."""
    app.command("from-llm-random")(from_llm_random)
    app.command("from-nano")(from_nano)


def from_llm_random(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="STEP.pt")],
    name: Name, overrides: Overrides = None, runs_dir: RunsDir = Path("runs"), as_json: AsJson = False,
) -> None:
    """Make a run folder with a checkpoint of llm-random as its first, for `upmix train ... --resume`."""
    from framework.convert import research

    report = research.from_llm_random(file, run_path(name, runs_dir), overrides or [])
    tell(report, f"model of {report['layout']}", as_json)


def from_nano(
    source: Annotated[Path, typer.Argument(metavar="FILE|DIR", help="a file, or step_N of sharded training")],
    name: Name, overrides: Overrides = None, runs_dir: RunsDir = Path("runs"), as_json: AsJson = False,
) -> None:
    """Make a run folder with a checkpoint of nano as its first, for `upmix train ... --resume`."""
    from framework.convert import research

    report = research.from_nano(source, run_path(name, runs_dir), overrides or [])
    tell(report, f"model of {report['layout']}", as_json)
