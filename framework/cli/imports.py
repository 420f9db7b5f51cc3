"""What commands that make a run of weights from elsewhere have in common."""

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


def run_path(name: str, runs_dir: Path) -> Path:
    """Where the new run goes. Raises UserError for what is no name of a folder."""
    path = Path(name)
    return path.parent / folder_name(path.name, name) if "/" in name else runs_dir / folder_name(name, name)


def tell(report: dict, model: str, as_json: bool) -> None:
    """Print what was made, of what sort of model, and what can be done with it."""
    if as_json:
        print(json.dumps(report))
        return
    run = Path(report["run"])
    print(f"{run}: step 0, {report['num_tensors']} tensors of {report['source']}, a {model}; pattern "
          f"{report['pattern']}; tokenizer: {report['tokenizer'] or 'none'}")
    for text in report.get("cautions", ()):
        print(f"caution: {text}")
    if report["has_data"]:
        print(f"next: upmix train {run / 'recipe.yaml'} --name {run.name} --runs-dir {run.parent} --resume")
    else:
        print("it can be generated from, upcycled and converted; to train or evaluate it, convert with "
              "data.corpus=... and training.steps=...")
