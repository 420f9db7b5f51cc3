"""`upmix bench train RECIPE` and `bench kernels`: how fast, against what the machine can do and against others."""

import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from framework.bench.kernels.options import FLAGS, ONLY
from framework.cli.progress import bar
from framework.errors import UserError

app = typer.Typer(help="Measure throughput.", no_args_is_help=True)


@app.callback()
def group() -> None:
    """Measure throughput."""


@app.command("train")
def train(
    recipe: Annotated[str, typer.Argument(help="a recipe's name or file")],
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="fields to change")] = None,
    compare: Annotated[str | None, typer.Option(
        metavar="hf,megatron", help="the same model in transformers, in megatron-core (on a GPU), in the same run"
    )] = None,
    steps: Annotated[int, typer.Option(min=1, help="optimizer steps of a round")] = 5,
    pairs: Annotated[int, typer.Option(min=1, help="rounds; with a peer, pairs of rounds")] = 7,
    routing: Annotated[str, typer.Option(
        metavar="both|real|balanced", help="the router's own choices, even ones, or further rounds with even ones"
    )] = "both",
    as_json: Annotated[bool, typer.Option("--json", help="print one JSON object")] = False,
) -> None:
    """Time whole optimizer steps of a recipe, on as many ranks as its layout has, and where the time goes."""
    from framework.bench import ContestantFailure, bench_train
    from framework.data import open_data
    from framework.recipe import load_recipe, require_runnable
    from framework.training.preconditions import mesh_sizes, require_packages
    from parallel import find_place

    loaded, place = load_recipe(recipe, overrides or []), find_place()
    require_runnable(loaded)
    require_packages(loaded.recipe)
    options = _options(compare, steps, pairs, routing, mesh_sizes(loaded.recipe.parallel).world, place is None)
    arguments = recipe, overrides or [], loaded, options
    if place is not None:
        _be_a_rank(place, arguments, as_json)
        return
    open_data(loaded.recipe.data, loaded.recipe.model.vocab_size, loaded.recipe.training.seed)
    try:
        with bar("bench", options.num_turns(loaded)) as advance:
            found = bench_train(*arguments, advance)
    except ContestantFailure as error:
        print(f"upmix: {error}", file=sys.stderr)
        sys.exit(1)
    _print(found, as_json)


@app.command("kernels")
def kernels(
    compile_only: Annotated[bool, typer.Option("--compile-only", help=FLAGS["--compile-only"])] = False,
    check: Annotated[bool, typer.Option("--check", help=FLAGS["--check"])] = False,
    floors: Annotated[bool, typer.Option("--floors", help=FLAGS["--floors"])] = False,
    only: Annotated[str | None, typer.Option(help=ONLY)] = None,
    as_json: Annotated[bool, typer.Option("--json", help=FLAGS["--json"])] = False,
) -> None:
    """Time every kernel on the GPU here, or compile them all for an H100 and write docs/kernels_sm90_triton*.md."""
    flags = {"--compile-only": compile_only, "--check": check, "--floors": floors, "--json": as_json}
    arguments = [flag for flag, given in flags.items() if given] + ([] if only is None else ["--only", only])
    # A process of its own: Triton's interpreter, once imported, is not to be turned off.
    checkout = str(Path(__file__).parents[2])
    path = os.pathsep.join(filter(None, (checkout, os.environ.get("PYTHONPATH"))))
    command = [sys.executable, "-m", "framework.bench.kernels", *arguments]
    sys.exit(subprocess.run(command, env=os.environ | {"PYTHONPATH": path}).returncode)


def _options(compare: str | None, steps: int, pairs: int, routing: str, world: int, alone: bool):
    from framework import bench
    from framework.bench import ROUTINGS, Options

    peers = tuple(dict.fromkeys(compare.split(","))) if compare is not None else ()
    for peer in peers:
        if peer not in bench.PEERS:
            raise UserError(f"--compare {peer} is not known; allowed: {', '.join(bench.PEERS)}")
    if routing not in ROUTINGS:
        raise UserError(f"--routing {routing} is not known; allowed: {', '.join(ROUTINGS)}")
    if peers and world > 1:
        raise UserError(f"--compare {compare} runs on one rank; the recipe's layout has {world}")
    if peers and not alone:
        raise UserError(f"--compare {compare} starts processes of its own; allowed: without torchrun or srun")
    if peers and routing == "balanced":
        raise UserError(f"--routing balanced: peers route as their weights say; allowed with --compare {compare}: "
                        "both, real")
    return Options(steps, pairs, peers, routing)


def _be_a_rank(place, arguments: tuple, as_json: bool) -> None:
    from framework.bench import bench_as_rank
    from parallel import choose_device, join

    device = choose_device(place)
    with join(place, device):
        found = bench_as_rank(*arguments, device)
    if place.rank == 0:
        _print(found, as_json)


def _print(found, as_json: bool) -> None:
    from framework.bench import lines

    print(json.dumps(asdict(found), indent=1) if as_json else "\n".join(lines(found)))
