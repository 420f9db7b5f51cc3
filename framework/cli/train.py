"""`upmix train RECIPE [key=value ...]`: train a recipe into a run folder."""

import signal
import sys
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path
from typing import Annotated

import typer

from framework.cli.names import folder_name
from framework.cli.ranks import start_ranks
from framework.cli.stopping import telling
from framework.training.signals import BEFORE_TRAINING, StopRequest


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
    place = find_place()
    with telling(BEFORE_TRAINING, speaks=place is None or place.rank == 0):
        loaded = load_recipe(recipe, overrides or [])
        require_runnable(loaded)
        if place is not None:
            sys.exit(_be_a_rank(place, loaded, path, resume, only))
        if not _prepare(loaded, path, resume, only):
            sys.exit()
    sys.exit(_start_ranks(loaded, path, only))


def _prepare(loaded, path: Path, resume: bool, only: str | None) -> bool:
    """Refuse or prepare what needs one process alone; whether anything is left to be trained."""
    from framework.data import open_data
    from framework.training import Admission, admit_parts, parts_of
    from framework.training.preconditions import require_packages

    parts, recipe = parts_of(loaded, path, only), loaded.recipe
    if admit_parts(parts, resume) is Admission.FINISHED:
        print("\n".join(f"{part.path}: finished already" for part in parts), file=sys.stderr)
        return False
    require_packages(recipe)
    open_data(recipe.data, recipe.model.vocab_size, recipe.training.seed)
    return True


def _start_ranks(loaded, path: Path, only: str | None) -> int:
    """Run this command once for each rank; tells what only the one that started them can."""
    from framework.training import parts_of, under_way
    from framework.training.preconditions import mesh_sizes

    recipe = loaded.recipe
    code = start_ranks(mesh_sizes(recipe.parallel).world)
    if code == 128 + signal.SIGALRM:
        stall = f"{recipe.training.stall_minutes:g} minutes"
        print(f"no step ended for {stall} (training.stall_minutes); where each rank stood: "
              f"{under_way(parts_of(loaded, path, only)).path / 'stacks'}",
              file=sys.stderr)
    return code


def _be_a_rank(place, loaded, path: Path, resume: bool, only: str | None = None) -> int:
    recipe = loaded.recipe
    with StopRequest() as request, ExitStack() as world:
        with request.ending_process(speaks=place.rank == 0), request.excusing():
            # Importing them takes seconds.
            from framework.training import TrainingFailure, meet, parts_of, train_parts
            from parallel import choose_device, join

            device = choose_device(place)
            world.enter_context(join(place, device, _patience(recipe.training.stall_minutes)))
            groups = meet(recipe.parallel, device)
        try:
            return train_parts(parts_of(loaded, path, only), resume, device, groups, request)
        except TrainingFailure as error:
            print(f"upmix: {error}", file=sys.stderr)
            return 1


def _patience(stall_minutes: float | None) -> timedelta:
    """How long a rank waits for others in a collective: longer than the watchdog, which tells where they stand."""
    return timedelta(days=30) if stall_minutes is None else timedelta(minutes=stall_minutes + 30)
