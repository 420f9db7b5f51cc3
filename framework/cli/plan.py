"""`upmix plan RECIPE --on 64xh100`: what a recipe takes on a cluster, before a job is queued."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from framework.cli.progress import growing_bar

if TYPE_CHECKING:
    from framework.plan import Plan
    from framework.plan.rehearsal import Rehearsal
    from framework.plan.search import Found

PARTS = {"parameters": "parameters", "optimizer": "optimizer", "partial": "gradients", "activations": "activations",
         "gathered": "gathered", "working": "working", "pipeline": "pipeline", "peak": "peak"}
"""Of memory, as at the peak."""
AXES = {"dp": "data parallel", "ep": "experts", "tp": "tensor", "cp": "context", "pp": "pipeline"}


def command(
    recipe: Annotated[str, typer.Argument(help="a name that `upmix recipes` lists, or a .yaml file")],
    overrides: Annotated[list[str] | None, typer.Argument(help="key=value, as parallel.ep=8")] = None,
    on: Annotated[str | None, typer.Option("--on", help="GPUs: 64xh100; also a100, h200, gh200, b200")] = None,
    search: Annotated[bool, typer.Option("--search", help="try all layouts of these GPUs; the best ten")] = False,
    write: Annotated[Path | None, typer.Option("--write", help="with --search: a recipe of the best layout")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="a real step of a rank, without memory or peers")] = False,
    rank: Annotated[int | None, typer.Option("--rank", help="with --dry-run: which rank; default: 0")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print one JSON object")] = False,
) -> None:
    """Memory of each rank, traffic, time and cost of a recipe on a cluster, and whether it fits."""
    from framework.errors import UserError
    from framework.plan import make_plan, read_cluster
    from framework.recipe import load_recipe

    if on is None and not dry_run:
        raise UserError("--on: not given; allowed: number and kind of GPUs, as 64xh100 (or --dry-run)")
    if search and dry_run:
        raise UserError("--search and --dry-run: given together; allowed: one of them")
    if write is not None and not search:
        raise UserError(f"--write {write}: given without --search; allowed: with it")
    if rank is not None and not dry_run:
        raise UserError(f"--rank {rank}: given without --dry-run; allowed: with it")
    cluster, loaded = on and read_cluster(on), load_recipe(recipe, overrides or ())
    if search:
        _search(loaded, cluster, recipe, overrides or [], write, as_json)
        return
    plan = cluster and make_plan(loaded, cluster)
    rehearsal = _rehearse(loaded, rank or 0) if dry_run else None
    if as_json:
        found = (plan.as_json() if plan else {}) | ({"dry_run": asdict(rehearsal)} if rehearsal else {})
        print(json.dumps(found, indent=1))
        return
    print("\n".join([*(_plan(plan) if plan else ()), *(_rehearsal(rehearsal) if rehearsal else ())]))


def _rehearse(loaded, rank: int) -> Rehearsal:
    from framework.plan.rehearsal import rehearse

    return rehearse(loaded, rank)


def _plan(plan: Plan) -> Iterator[str]:
    from framework.plan.plan import assumptions

    timing, machine, fullest = plan.timing, plan.cluster.machine, plan.fullest
    degrees = ", ".join(f"{axis} {degree}" for axis, degree in plan.layout.items() if degree > 1) or "one rank"
    yield f"{plan.cluster.name}: {degrees}"
    yield f"\n{'memory, GB':<14}" + "".join(f"{f'pp rank {each.pipeline_rank}':>12}" for each in plan.memory)
    for name, what in PARTS.items():
        yield f"{what:<14}" + "".join(f"{getattr(each, name) / 1e9:>12.2f}" for each in plan.memory)
    verdict = "fits" if plan.fits else "does not fit"
    yield (f"{verdict}: {plan.needed / 1e9:.1f} of {machine.memory / 1e9:.0f} GB with reserves; the peak is in the "
           f"{fullest.moment}" + (f", on pipeline rank {fullest.pipeline_rank}" if len(plan.memory) > 1 else ""))
    yield f"\n{'sent by a rank in a step':<26}{'NVLink, GB':>12}{'network, GB':>13}{'seconds':>10}"
    for row in plan.traffic:
        yield f"{AXES[row.axis]:<26}{row.nvlink / 1e9:>12.3f}{row.network / 1e9:>13.3f}{row.seconds:>10.4f}"
    yield f"\n{'':<26}{'shortest':>12}{'longest':>12}"
    yield f"{'step, seconds':<26}{timing.step_seconds[1]:>12.3f}{timing.step_seconds[0]:>12.3f}"
    yield f"{'MFU':<26}{timing.mfu[1]:>12.1%}{timing.mfu[0]:>12.1%}"
    yield f"{'tokens a second':<26}{timing.tokens_per_second[1]:>12,.0f}{timing.tokens_per_second[0]:>12,.0f}"
    if timing.days is not None:
        yield f"{'days':<26}{timing.days[1]:>12.2f}{timing.days[0]:>12.2f}"
        yield f"{'GPU-hours':<26}{timing.gpu_hours[1]:>12,.0f}{timing.gpu_hours[0]:>12,.0f}"
    tokens = "" if timing.tokens is None else f"; {timing.tokens:,} tokens in all"
    yield f"{timing.flops:.3g} FLOPs a step; pipeline waits {timing.bubble:.1%} of the time{tokens}"
    yield "\nassumed: " + "; ".join(assumptions())


def _rehearsal(rehearsal: Rehearsal) -> Iterator[str]:
    yield f"\ndry run of rank {rehearsal.rank} of {rehearsal.world}: {rehearsal.seconds:.1f} s"
    for name in ("parameters", "gradients", "optimizer", "peak"):
        yield f"{name:<14}{getattr(rehearsal, name) / 1e9:>12.4f} GB"
    for axis, size in rehearsal.sent.items():
        yield f"{'sent, ' + axis:<14}{size / 1e9:>12.4f} GB"


def _search(loaded, cluster, name: str, overrides: list[str], path: Path | None, as_json: bool) -> None:
    from framework.plan.search import search, write
    from framework.recipe.files import new_recipe

    with new_recipe(path, "--write") if path is not None else nullcontext():
        with growing_bar("layouts") as advance:
            found = search(loaded, cluster, lambda: advance(1, 1))
        if path is not None:
            write(found.best[0], name, overrides, path)
    if as_json:
        print(json.dumps(found.as_json(), indent=1))
    else:
        print("\n".join(_found(found, path)))


def _found(found: Found, path: Path | None) -> Iterator[str]:
    from framework.plan.search import describe

    yield f"{found.num_fitting} of {found.num_tried} layouts fit; the fastest, by their range of seconds a step:"
    for place, each in enumerate(found.best, start=1):
        longest, shortest = each.plan.timing.step_seconds
        yield f"{place:>2}  {shortest:.3g}-{longest:.3g} s  {describe(each)}: {each.reasons}"
    if path is not None:
        yield f"wrote {path}"
