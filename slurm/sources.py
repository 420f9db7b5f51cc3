"""What a command line asks to submit: a recipe, a sweep of one, or a chain."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from framework.errors import UserError
from framework.files import is_plain_name
from framework.recipe import load_recipe
from framework.training.budget import make_budget
from framework.training.parts import admit_parts, parts_of
from framework.training.run_folder import Admission
from slurm.chain import is_chain, plan_chain
from slurm.host import Host
from slurm.jobs import Submission
from slurm.plan import plan_run, plan_sweep
from slurm.progress import progress

if TYPE_CHECKING:
    from framework.sweep import Arguments, Sweep


def plan(source: str, asked: Arguments, gpus_per_node: int, host: Host, runs: str, resume: bool) -> Submission:
    """The submission of a source. What is finished in the runs folder is left out; a sweep's cells always go on.

    resume: whether a run that is there may go on. Raises UserError for what cannot be submitted.
    """
    from framework.sweep import is_sweep, load_sweep

    if is_chain(source):
        if asked != replace(type(asked)(), name=asked.name):
            raise UserError(f"{source}: a chain takes no fields, axes or tags; allowed: --name, and `set` of its steps")
        return _named(plan_chain(source, asked.name, gpus_per_node))
    if asked.over or asked.seeds is not None or is_sweep(source):
        sweep = load_sweep(source, asked)
        _refuse_other_runs(sweep, host, runs)
        return _named(plan_sweep(sweep, gpus_per_node, _finished_cells(sweep, host, runs)))
    if asked.link or asked.where:
        raise UserError("--link and --where without axes; allowed: with --over, --seeds or a sweep's file")
    return _run(source, asked, gpus_per_node, host, runs, resume)


def _run(source: str, asked: Arguments, gpus_per_node: int, host: Host, runs: str, resume: bool) -> Submission:
    tags = (f"tags=[{', '.join(map(repr, asked.tags))}]",) if asked.tags else ()
    loaded = load_recipe(source, (*asked.overrides, *tags))
    submission = _named(plan_run(loaded, asked.name or Path(source).stem, gpus_per_node))
    name = submission.name
    if host.name:
        num_steps = make_budget(loaded.recipe.data, loaded.recipe.training).num_steps
        finished = not loaded.recipe.training.slides and progress(host, [f"{runs}/{name}"], [num_steps])[0].finished
    else:
        finished = admit_parts(parts_of(loaded, Path(runs) / name), resume) is Admission.FINISHED
    return Submission(name, (), (name,)) if finished else submission


def _refuse_other_runs(sweep: Sweep, host: Host, runs: str) -> None:
    """A run of another recipe in a cell's folder would be found out by the job alone, after the queue."""
    if host.tails([f"{runs}/{sweep.name}/recipe.yaml"], 1) != [None]:
        raise UserError(f"{runs}/{sweep.name}: a run, no folder of a sweep's runs; allowed: another --name")
    for cell in sweep.cells if not host.name else ():
        if (folder := Path(runs) / sweep.name / cell.name).exists():
            admit_parts(parts_of(cell.loaded, folder), resume=True)


def _finished_cells(sweep: Sweep, host: Host, runs: str) -> list[str]:
    folders = [f"{runs}/{sweep.name}/{cell.name}" for cell in sweep.cells]
    recipes = [cell.loaded.recipe for cell in sweep.cells]
    seen = progress(host, folders, [make_budget(recipe.data, recipe.training).num_steps for recipe in recipes])
    return [cell.name for cell, state, recipe in zip(sweep.cells, seen, recipes, strict=True)
            if state.finished and not recipe.training.slides]


def _named(submission: Submission) -> Submission:
    if not is_plain_name(submission.name):
        raise UserError(f"--name {submission.name!r}: no name for a submission; allowed: a plain name for a folder, "
                        "without '/'")
    return submission
