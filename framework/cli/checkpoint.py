"""`upmix checkpoint ls|show|verify|consolidate`: what checkpoints a run has, what they hold, whether they are whole."""

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from framework.errors import UserError

app = typer.Typer(help="List, look into, verify and consolidate checkpoints.", no_args_is_help=True)
RunFolder = Annotated[Path, typer.Argument(help="run folder")]
StepFolder = Annotated[Path, typer.Argument(help="one checkpoint: RUN/checkpoints/step_N")]


@app.command("ls")
def ls(run: RunFolder) -> None:
    """List a run's checkpoints with their size in bytes, without reading them; exit 1 if one is plainly damaged."""
    from framework.training.checkpoint import DamagedCheckpoint, checkpoint_folder, present_files

    damaged = False
    for folder in (checkpoint_folder(run / "checkpoints", step) for step in _steps(run)):
        try:
            files = present_files(folder)
            print(f"{folder.name}  {sum(files.values()):,} bytes in {len(files)} files")
        except DamagedCheckpoint as error:
            damaged = True
            print(f"{folder.name}  damaged: {error}")
    sys.exit(1 if damaged else 0)


@app.command("show")
def show(
    checkpoint: StepFolder,
    as_json: Annotated[bool, typer.Option("--json", help="print one JSON object")] = False,
) -> None:
    """Print the tensors of a checkpoint: name, whole shape, dtype, and in how many parts ranks wrote it."""
    from framework.training.checkpoint import DamagedCheckpoint, read_manifest, stored_tensors

    root, step = _place(checkpoint)
    try:
        manifest, tensors = read_manifest(checkpoint), stored_tensors(checkpoint)
    except DamagedCheckpoint as error:
        raise UserError(f"{checkpoint}: damaged: {error}") from None
    rows = [{"name": tensor.name, "shape": tensor.shape, "dtype": str(tensor.dtype).removeprefix("torch."),
             "parts": tensor.num_chunks} for tensor in tensors]
    if as_json:
        print(json.dumps({"step": step, "progress": manifest.progress, "tensors": rows}))
        return
    print(f"{root.parent.name} step {step}: {len(tensors)} tensors, {sum(t.num_bytes for t in tensors):,} bytes")
    for row in rows:
        shape = " x ".join(map(str, row["shape"])) or "scalar"
        print(f"{row['name']}  {shape}  {row['dtype']}  {row['parts']} parts")


@app.command("verify")
def verify(path: Annotated[Path, typer.Argument(help="run folder, or one checkpoint of it")]) -> None:
    """Read every file of every checkpoint (or of one) and compare with the manifest; exit 1 if one is damaged."""
    from framework.training.checkpoint import damage

    path = path.absolute()
    one = path.parent.name == "checkpoints"
    root, steps = (path.parent, [_place(path)[1]]) if one else (path / "checkpoints", _steps(path))
    reasons = {step: damage(root, step) for step in steps}
    for step, reason in reasons.items():
        print(f"step_{step}  {'good' if reason is None else f'damaged: {reason}'}")
    sys.exit(1 if any(reasons.values()) else 0)


@app.command("consolidate")
def consolidate(
    checkpoint: StepFolder,
    out: Annotated[Path | None, typer.Option(help="new folder; default: RUN/consolidated/step_N")] = None,
) -> None:
    """Write the weights of a checkpoint as whole tensors into safetensors files, whatever layout saved them."""
    from framework.training.checkpoint import consolidate as write_whole
    from framework.training.checkpoint import damage

    root, step = _place(checkpoint)
    if reason := damage(root, step):
        raise UserError(f"{checkpoint}: damaged: {reason}")
    for path in write_whole(checkpoint, out or root.parent / "consolidated" / checkpoint.name):
        print(f"{path}  {path.stat().st_size:,} bytes")


def _place(checkpoint: Path) -> tuple[Path, int]:
    """The folder of checkpoints, and the step, of RUN/checkpoints/step_N."""
    from framework.training.checkpoint import steps_present

    checkpoint = checkpoint.absolute()
    name, root = checkpoint.name, checkpoint.parent
    step = next((step for step in steps_present(root) if f"step_{step}" == name), None)
    if step is None:
        raise UserError(f"{checkpoint}: no checkpoint; allowed: RUN/checkpoints/step_N, as `upmix checkpoint ls RUN` "
                        "lists them")
    return root, step


def _steps(run: Path) -> list[int]:
    from framework.training.checkpoint import steps_present

    if steps := steps_present(run / "checkpoints"):
        return steps
    raise UserError(f"{run}: no checkpoints here; allowed: a run folder with checkpoints/step_N")
