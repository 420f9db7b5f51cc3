"""`upmix checkpoint ls|verify RUN`: what checkpoints a run has, and whether they are whole."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from framework.errors import UserError

app = typer.Typer(help="List and verify the checkpoints of a run.", no_args_is_help=True)
RunFolder = Annotated[Path, typer.Argument(help="run folder")]


@app.command("ls")
def ls(run: RunFolder) -> None:
    """List checkpoints with their size in bytes, without reading them."""
    from framework.training.checkpoint import DamagedCheckpoint, checkpoint_folder, read_manifest

    for step in _steps(run):
        try:
            files = read_manifest(checkpoint_folder(run / "checkpoints", step)).files
            print(f"step_{step}  {sum(facts['size'] for facts in files.values()):,} bytes in {len(files)} files")
        except DamagedCheckpoint as error:
            print(f"step_{step}  damaged: {error}")


@app.command("verify")
def verify(run: RunFolder) -> None:
    """Read every file of every checkpoint and compare it with the manifest; exit 1 if one is damaged."""
    from framework.training.checkpoint import damage

    reasons = {step: damage(run / "checkpoints", step) for step in _steps(run)}
    for step, reason in reasons.items():
        print(f"step_{step}  {'good' if reason is None else f'damaged: {reason}'}")
    sys.exit(1 if any(reasons.values()) else 0)


def _steps(run: Path) -> list[int]:
    from framework.training.checkpoint import steps_present

    if steps := steps_present(run / "checkpoints"):
        return steps
    raise UserError(f"{run}: no checkpoints here; allowed: a run folder with checkpoints/step_N")
