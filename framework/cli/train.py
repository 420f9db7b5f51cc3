"""`upmix train RECIPE [key=value ...]`: train a recipe into a run folder."""

import signal
import sys
from datetime import timedelta
from pathlib import Path
from typing import Annotated

import typer

from framework.cli.names import folder_name
from framework.cli.ranks import start_ranks


def command(
    recipe: Annotated[str, typer.Argument(help="a recipe's name or file")],
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="fields to change")] = None,
    name: Annotated[str | None, typer.Option(help="of the run; default: the recipe's last part")] = None,
    runs_dir: Annotated[Path, typer.Option(help="where run folders stand")] = Path("runs"),
    resume: Annotated[bool, typer.Option("--resume", help="go on with the run, if it is there")] = False,
    only: Annotated[str | None, typer.Option(
        "--slide", metavar="LENGTH", help="this slide alone; none: the trunk alone; default: the trunk, then all slides"
    )] = None,
) -> None:
    """Train, starting all ranks on this machine, or as one rank of those that torchrun or srun started."""
    from framework.recipe import load_recipe, require_runnable
    from parallel import find_place

    path = runs_dir / folder_name(name, recipe)
    loaded = load_recipe(recipe, overrides or [])
    require_runnable(loaded)
    place = find_place()
    how = loaded, path, resume, only
    sys.exit(_start_ranks(*how) if place is None else _be_a_rank(place, *how))


def _start_ranks(loaded, path: Path, resume: bool, only: str | None) -> int:
    """Refuse or prepare what needs one process alone, then run this command once for each rank."""
    from framework.data import open_data
    from framework.training import Admission, admit_parts, parts_of, under_way
    from framework.training.preconditions import mesh_sizes, require_packages

    parts = parts_of(loaded, path, only)
    if admit_parts(parts, resume) is Admission.FINISHED:
        print("\n".join(f"{part.path}: finished already" for part in parts), file=sys.stderr)
        return 0
    recipe = loaded.recipe
    require_packages(recipe)
    open_data(recipe.data, recipe.model.vocab_size, recipe.training.seed)
    code = start_ranks(mesh_sizes(recipe.parallel).world)
    if code == 128 + signal.SIGALRM:
        stall = f"{recipe.training.stall_minutes:g} minutes"
        print(f"no step ended for {stall} (training.stall_minutes); where each rank stood: "
              f"{under_way(parts).path / 'stacks'}",
              file=sys.stderr)
    return code


def _be_a_rank(place, loaded, path: Path, resume: bool, only: str | None = None) -> int:
    from framework.training import TrainingFailure, parts_of, train_parts
    from parallel import choose_device, join

    try:
        device = choose_device(place)
        with join(place, device, _patience(loaded.recipe.training.stall_minutes)):
            return train_parts(parts_of(loaded, path, only), resume, device)
    except TrainingFailure as error:
        print(f"upmix: {error}", file=sys.stderr)
        return 1


def _patience(stall_minutes: float | None) -> timedelta:
    """How long a rank waits for others in a collective: longer than the watchdog, which tells where they stand."""
    return timedelta(days=30) if stall_minutes is None else timedelta(minutes=stall_minutes + 30)
