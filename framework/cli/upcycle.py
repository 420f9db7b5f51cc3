"""`upmix upcycle RUN|CHECKPOINT --recipe TARGET [key=value ...]`: a mixture of experts from a dense run."""

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from framework.cli.names import folder_name
from framework.cli.ranks import start_ranks
from framework.errors import UserError


def command(
    source: Annotated[Path, typer.Argument(metavar="RUN|CHECKPOINT", help="run folder, or RUN/checkpoints/step_N")],
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="of the target")] = None,
    recipe: Annotated[str, typer.Option(metavar="TARGET", help="the new run's recipe: a name or file")] = ...,
    name: Annotated[str | None, typer.Option(help="of the new run; default: the recipe's last part")] = None,
    runs_dir: Annotated[Path, typer.Option(help="where run folders stand")] = Path("runs"),
    method: Annotated[str, typer.Option(help="copy; granular: shards of hidden units; drop: some start anew")] = "copy",
    drop_ratio: Annotated[float | None, typer.Option(
        help="drop: share of hidden units that start anew; default: 0.5")] = None,
    noise_std: Annotated[float, typer.Option(help="of noise added to experts; 0: none")] = 0.0,
    noise_share: Annotated[float | None, typer.Option(
        help="share of hidden units that get noise; default: 0.5")] = None,
    router: Annotated[str | None, typer.Option(
        help="recipe, virtual_groups or uniform; default: of copy, granular and drop, in this order")] = None,
    scaling: Annotated[str | None, typer.Option(
        help="of experts' weights: none, paper or exact; default: paper if granular, else none")] = None,
    optimizer: Annotated[str, typer.Option(help="drop or carry the optimizer's state")] = "drop",
    keep_step: Annotated[bool, typer.Option("--keep-step", help="go on at the dense run's step, not at 0")] = False,
    step: Annotated[int | None, typer.Option(help="checkpoint to take; default: the newest good one")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print one JSON object")] = False,
) -> None:
    """Make a run folder whose first checkpoint is an upcycled one, for `upmix train ... --resume` to go on from."""
    from framework.recipe import load_recipe, require_runnable
    from framework.surgery import Options, find_source, prepare
    from framework.surgery.new_run import refuse_existing
    from parallel import find_place

    path = runs_dir / folder_name(name, recipe)
    target = load_recipe(recipe, overrides or [])
    require_runnable(target)
    if drop_ratio is not None and method != "drop":
        raise UserError(f"--drop-ratio {drop_ratio:g} with --method {method}; allowed: with --method drop")
    if noise_share is not None and not noise_std:
        raise UserError(f"--noise-share {noise_share:g} without noise; allowed: with --noise-std")
    shares = {name: value for name, value in (("drop_ratio", drop_ratio), ("noise_share", noise_share))
              if value is not None}
    options = Options(method, noise_std=noise_std, router=router, scaling=scaling, optimizer=optimizer,
                      keep_step=keep_step, **shares)
    task = prepare(find_source(source, step), target, options)
    refuse_existing(path)
    place = find_place()
    if place is None:
        sys.exit(_start_ranks(target))
    _be_a_rank(place, task, path, as_json)


def _start_ranks(target) -> int:
    """Prepare what needs one process alone, then run this command once for each rank."""
    from framework.data import open_data
    from framework.training.preconditions import mesh_sizes, require_packages

    recipe = target.recipe
    require_packages(recipe)
    open_data(recipe.data, recipe.model.vocab_size, recipe.training.seed)
    return start_ranks(mesh_sizes(recipe.parallel).world)


def _be_a_rank(place, task, path: Path, as_json: bool) -> None:
    from framework.surgery import upcycle
    from parallel import choose_device, join

    device = choose_device(place)
    with join(place, device):
        report = upcycle(task, path, device)
    if place.rank == 0:
        print(json.dumps(report) if as_json else _text(report))


def _text(report: dict) -> str:
    mixtures, run = report["mixtures"], Path(report["run"])
    lines = [f"{run}: step {report['step']}, from step {report['source_step']} of {report['source']}; {len(mixtures)} "
             f"dense blocks became mixtures of experts, the first of {mixtures[0]['num_experts']}"]
    if (difference := report["difference"]) is not None:
        lines.append(f"logits differ from the dense model's by at most {difference['max_abs']:.3g} (relative "
                     f"{difference['relative']:.3g}) on {difference['tokens']} {difference['split']} tokens")
    lines.append("the method promises " + ("equal logits, to rounding" if report["exact"] else "no equality:"))
    lines += [f"  {reason}" for reason in report["deviations"]]
    go_on = f"upmix train {run / 'recipe.yaml'} --name {run.name} --runs-dir {run.parent} --resume"
    return "\n".join([*lines, f"next: {go_on}"])
