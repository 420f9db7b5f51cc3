"""`upmix convert from-llm-random|from-nano`: checkpoints of the research code of llm-random and nano, to a new run."""

import json
from pathlib import Path
from typing import Annotated

import typer

from framework.cli.names import folder_name

Name = Annotated[str, typer.Argument(help="of the new run: a plain name under --runs-dir, or a path")]
Overrides = Annotated[list[str] | None, typer.Argument(
    metavar="[KEY=VALUE]...", help="of its recipe; what weights do not tell is asked for")]
RunsDir = Annotated[Path, typer.Option(help="where run folders stand")]
AsJson = Annotated[bool, typer.Option("--json", help="print one JSON object")]


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

    _tell(research.from_llm_random(file, _run_path(name, runs_dir), overrides or []), as_json)


def from_nano(
    source: Annotated[Path, typer.Argument(metavar="FILE|DIR", help="a file, or step_N of sharded training")],
    name: Name, overrides: Overrides = None, runs_dir: RunsDir = Path("runs"), as_json: AsJson = False,
) -> None:
    """Make a run folder with a checkpoint of nano as its first, for `upmix train ... --resume`."""
    from framework.convert import research

    _tell(research.from_nano(source, _run_path(name, runs_dir), overrides or []), as_json)


def _run_path(name: str, runs_dir: Path) -> Path:
    path = Path(name)
    return path.parent / folder_name(path.name, name) if "/" in name else runs_dir / folder_name(name, name)


def _tell(report: dict, as_json: bool) -> None:
    if as_json:
        print(json.dumps(report))
        return
    run = Path(report["run"])
    print(f"{run}: step 0, {report['num_tensors']} tensors of {report['source']}, a model of {report['layout']}; "
          f"pattern {report['pattern']}; tokenizer: {report['tokenizer'] or 'none'}")
    if report["has_data"]:
        print(f"next: upmix train {run / 'recipe.yaml'} --name {run.name} --runs-dir {run.parent} --resume")
    else:
        print("it can be generated from, upcycled and converted; to train or evaluate it, convert with "
              "data.corpus=... and training.steps=...")
