"""From a recipe or a sweep to the jobs that train it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from framework.recipe import dump, require_runnable
from framework.training.budget import make_budget
from framework.training.preconditions import mesh_sizes
from framework.training.slides import list_slides, slide_recipe
from slurm.jobs import Job, Submission, Training
from slurm.shape import Shape, shape_of

if TYPE_CHECKING:
    from framework.recipe import Loaded
    from framework.sweep import Sweep

def plan_run(loaded: Loaded, name: str, gpus_per_node: int) -> Submission:
    """One run under a name; with slides, the trunk and then an array of them.

    Raises UserError where the recipe cannot be trained, or its layout takes half a node.
    """
    return Submission(name, run_jobs(loaded, name, gpus_per_node))


def run_jobs(
    loaded: Loaded, name: str, gpus_per_node: int, runs_dir: str = "", after: Sequence[str] = ()
) -> tuple[Job, ...]:
    """The jobs of one run: of its trunk alone where it has no slides."""
    require_runnable(loaded)
    shape = shape_of(mesh_sizes(loaded.recipe.parallel).world, gpus_per_node, name)
    recipe, num_steps = dump(loaded.recipe), _num_steps(loaded)
    slides = list_slides(loaded, name)
    if not slides:
        return (Job(name, (Training(name, recipe, num_steps),), shape, runs_dir, tuple(after)),)
    trunk = Job(f"{name}-trunk", (Training(name, recipe, num_steps, "none"),), shape, runs_dir, tuple(after))
    lengths = [(str(slide.length), _num_steps(slide_recipe(loaded, slide))) for slide in slides]
    decays = tuple(Training(name, recipe, steps, length) for length, steps in lengths)
    return trunk, Job(f"{name}-slides", decays, shape, runs_dir, (trunk.name,))


def plan_sweep(sweep: Sweep, gpus_per_node: int, finished: Iterable[str] = ()) -> Submission:
    """An array of the cells of each shape, and the slides of a cell behind its trunk.

    finished: names of cells that are left out. Raises UserError as `plan_run`, naming the cell.
    """
    left_out = set(finished)
    arrays: dict[Shape, list[Training]] = {}
    jobs: list[Job] = []
    for cell in sweep.cells:
        if cell.name in left_out:
            continue
        cell_jobs = run_jobs(cell.loaded, cell.name, gpus_per_node, sweep.name)
        if len(cell_jobs) > 1:
            jobs += cell_jobs
        else:
            arrays.setdefault(cell_jobs[0].shape, []).extend(cell_jobs[0].trainings)
    for shape, trainings in arrays.items():
        name = "cells" if len(arrays) == 1 else f"cells_on_{shape.world}"
        jobs.append(Job(name, tuple(trainings), shape, sweep.name))
    return Submission(sweep.name, tuple(jobs), tuple(f"{sweep.name}/{cell}" for cell in sorted(left_out)))


def _num_steps(loaded: Loaded) -> int:
    return make_budget(loaded.recipe.data, loaded.recipe.training).num_steps
