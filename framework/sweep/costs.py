"""What each cell of a sweep would cost, before anything runs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from framework.recipe import sizes
from framework.sweep.fields import budget_of
from framework.sweep.load import Cell, Sweep
from framework.training.budget import make_budget
from framework.training.preconditions import mesh_sizes
from framework.training.slides import list_slides, slide_recipe

H100_TERAFLOPS = 989.0
"""Dense bfloat16 matrix products of an H100 SXM by NVIDIA's data sheet, in 10^12 a second."""
ASSUMED_SHARE = 0.3
ASSUMED_TERAFLOPS = ASSUMED_SHARE * H100_TERAFLOPS


@dataclass(frozen=True)
class Cost:
    """tokens: of the run, its slides left out. flops: of training it, the decays of its slides included. gpus: ranks of
    its layout. hours: of all these at once. None where the recipe states no length. finished: its run is over.
    """

    params_total: int
    params_active: int
    tokens: int | None
    flops: float | None
    gpus: int
    hours: float | None
    finished: bool


def costs(sweep: Sweep, runs_dir: Path, teraflops: float = ASSUMED_TERAFLOPS) -> list[Cost]:
    """Of each cell. runs_dir: where the sweep's folder stands. teraflops: 10^12 operations that a GPU does a second.

    Raises RecipeError for slides that cannot be.
    """
    return [cost(cell, runs_dir / sweep.name / cell.name, teraflops) for cell in sweep.cells]


def cost(cell: Cell, folder: Path, teraflops: float) -> Cost:
    """Of one cell that is trained into a folder."""
    recipe = cell.loaded.recipe
    found = sizes(cell.loaded.architecture, recipe.data.seq_len)
    gpus = mesh_sizes(recipe.parallel).world
    budget = budget_of(cell.loaded)
    tokens = flops = hours = None
    if budget is not None:
        tokens = budget.tokens_after(budget.num_steps)
        flops = float(found["flops_per_token"]) * (tokens + _slide_tokens(cell))
        hours = flops / (gpus * teraflops * 1e12) / 3600
    return Cost(found["params_total"], found["params_active"], tokens, flops, gpus, hours, is_finished(cell, folder))


def is_finished(cell: Cell, folder: Path) -> bool:
    """Whether DONE says that the run, and every slide that branches off it, came to its end."""
    if not folder.exists():
        return False
    budget = budget_of(cell.loaded)
    lengths = [(folder, budget.num_steps)] if budget else []
    lengths += [(folder.with_name(slide.name), slide.num_steps) for slide in list_slides(cell.loaded, folder.name)]
    return bool(lengths) and all(_last_step(path / "DONE") >= num_steps for path, num_steps in lengths)


def _slide_tokens(cell: Cell) -> int:
    """Tokens of the decays alone; until it branches off, a slide is its trunk."""
    tokens = 0
    for slide in list_slides(cell.loaded, cell.name):
        recipe = slide_recipe(cell.loaded, slide).recipe
        budget = make_budget(recipe.data, recipe.training)
        tokens += budget.tokens_after(budget.num_steps) - budget.tokens_after(slide.branch_step)
    return tokens


def _last_step(done: Path) -> int:
    """0 without DONE, and where it is damaged."""
    try:
        return int(done.read_text())
    except (OSError, ValueError):
        return 0
