"""A recipe with what every part of a plan asks of it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

from framework.plan.holdings import Unit, units
from framework.recipe.flops import training_flops_per_token
from framework.recipe.parameters import Parameter, parameters
from framework.recipe.stages import balanced_borders, layer_costs, num_stages
from framework.training.preconditions import mesh_sizes

if TYPE_CHECKING:
    from framework.recipe import Architecture, Loaded, Recipe
    from parallel import MeshSizes


@dataclass(frozen=True)
class Outline:
    """rows: the model's parameters. costs: FLOPs of a token's forward in each layer (`recipe.stages.layer_costs`).
    flops_per_token: of training (`recipe.flops`).
    """

    loaded: Loaded
    rows: list[Parameter]
    costs: list[int]
    flops_per_token: int

    @classmethod
    def of(cls, loaded: Loaded) -> Outline:
        """Checked recipes only: sizes are taken to divide."""
        model, seq_len = loaded.architecture, loaded.recipe.data.seq_len
        rows = parameters(model)
        return cls(loaded, rows, layer_costs(model, seq_len), training_flops_per_token(model, seq_len, rows))

    def with_recipe(self, recipe: Recipe) -> Outline:
        """The same model and sequences under another layout."""
        return replace(self, loaded=replace(self.loaded, recipe=recipe))

    @property
    def recipe(self) -> Recipe:
        return self.loaded.recipe

    @property
    def architecture(self) -> Architecture:
        return self.loaded.architecture

    @cached_property
    def sizes(self) -> MeshSizes:
        """Degrees of the axes."""
        return mesh_sizes(self.recipe.parallel)

    @cached_property
    def stages(self) -> list[range]:
        """The layers of each stage of the pipeline, as `recipe.stages.stage_layers` cuts them."""
        count = num_stages(self.recipe.parallel)
        if self.architecture.cuts and count > 1:
            borders = [0, *self.architecture.cuts, len(self.architecture.layers)]
        else:
            borders = balanced_borders(self.costs, count)
        return [range(first, end) for first, end in zip(borders, borders[1:], strict=False)]

    @cached_property
    def units(self) -> list[Unit]:
        """What `holdings.units` makes of the rows."""
        return units(self)

    def stages_on(self, pipeline_rank: int) -> list[range]:
        """Those that stand on a rank of pp; stage s on rank s modulo pp."""
        return self.stages[pipeline_rank :: self.sizes.pp]

    def layers_on(self, pipeline_rank: int) -> list[int]:
        """The layers of these stages."""
        return [layer for stage in self.stages_on(pipeline_rank) for layer in stage]
