"""What a run needs beside its recipe: looked at before a folder is made. Imports no torch."""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING

from framework.errors import UserError
from framework.packages import require_package
from parallel import MeshSizes

if TYPE_CHECKING:
    from framework.recipe.schema import Parallel, Recipe

AXES = tuple(field.name for field in fields(MeshSizes))


def mesh_sizes(layout: Parallel) -> MeshSizes:
    """The degrees of a layout. That ep fits the others, the recipe's check has seen to."""
    return MeshSizes(**{axis: getattr(layout, axis) for axis in AXES})


def require_ranks(layout: Parallel, num_ranks: int) -> None:
    """Raise UserError where another number of ranks was started than the layout has."""
    if (needed := mesh_sizes(layout).world) != num_ranks:
        raise UserError(f"{num_ranks} ranks were started; allowed: {needed}, which the recipe's layout needs "
                        "(parallel.dp_replicate * dp_shard * cp * tp * pp)")


def require_packages(recipe: Recipe) -> None:
    """Raise UserError where a package that the recipe asks for is not installed."""
    if recipe.parallel.engine == "deepspeed":
        require_package("parallel.engine=deepspeed", "deepspeed")
    if recipe.training.wandb:
        require_package("training.wandb=true", "wandb")
    if recipe.tasks.names:
        require_package("tasks.names", "lm-eval")
