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
from framework.cli.ranks import start_ranks
from framework.errors import UserError

app = typer.Typer(help="Measure throughput.", no_args_is_help=True)
PEERS = ("hf",)


@app.callback()
def group() -> None:
    """Measure throughput."""


@app.command("train")
def train(
    recipe: Annotated[str, typer.Argument(help="a recipe's name or file")],
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="fields to change")] = None,
    compare: Annotated[str | None, typer.Option(help="hf: the same model in transformers, in the same run")] = None,
    steps: Annotated[int, typer.Option(min=1, help="optimizer steps of a round")] = 5,
    pairs: Annotated[int, typer.Option(min=1, help="rounds; with a peer, pairs of rounds")] = 5,
    as_json: Annotated[bool, typer.Option("--json", help="print one JSON object")] = False,
) -> None:
    """Time whole optimizer steps of a recipe, on as many ranks as its layout has."""
    from framework.recipe import load_recipe, require_runnable
    from framework.training.preconditions import mesh_sizes
    from parallel import find_place

    loaded = load_recipe(recipe, overrides or [])
    require_runnable(loaded)
    world = mesh_sizes(loaded.recipe.parallel).world
    if compare not in (None, *PEERS):
        raise UserError(f"--compare {compare} is not known; allowed: {', '.join(PEERS)}")
    if compare is not None and world > 1:
        raise UserError(f"--compare {compare} runs on one rank; the recipe's layout has {world}")
    place = find_place()
    if place is None:
        sys.exit(start_ranks(world))
    _be_a_rank(place, loaded, steps, pairs, compare, as_json)


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


def _be_a_rank(place, loaded, steps: int, pairs: int, compare: str | None, as_json: bool) -> None:
    from framework.bench import bench_train
    from parallel import choose_device, join

    device = choose_device(place)
    leads = place.rank == 0
    with join(place, device):
        measured = bench_train(loaded, device, steps, pairs, compare,
                               lambda line: print(line, file=sys.stderr) if leads else None)
    if not leads:
        return
    if as_json:
        print(json.dumps(asdict(measured)))
        return
    rate, peak = measured.model_flops_per_second / 1e9, measured.peak_flops_per_second / 1e9
    print(f"{measured.tokens_per_second:,.0f} tokens/s, {rate:,.1f} model GFLOP/s: {measured.mfu:.0%} of the "
          f"{peak:,.1f} GFLOP/s of a large matrix product here")
    for name, peer in measured.peers.items():
        print(f"{peer['median_ratio']:.2f} times {name} ({peer['tokens_per_second']:,.0f} tokens/s; median of {pairs} "
              "pairs)")
