"""The typed, frozen schema of a recipe."""

from pydantic import Field

from framework.recipe.schema.base import Section, Tags
from framework.recipe.schema.model import FFN, Attention, Mamba, Model, MoE, Multipliers, RopeScaling, SublayerVariant
from framework.recipe.schema.run import (
    Checkpoint,
    Data,
    Init,
    Optim,
    Parallel,
    Parametrization,
    RelativeLR,
    Tasks,
    Training,
)

FORMAT = 1


class Recipe(Section):
    """One experiment, whole."""

    format: int = Field(FORMAT, description="of the recipe; raised when a change would misread old files")
    description: str = Field("", description="one line, shown by `upmix recipes`")
    tags: Tags = Field((), description="words by which runs are found again")
    model: Model
    data: Data = Data()
    optim: Optim = Optim()
    parametrization: Parametrization = Parametrization()
    training: Training = Training()
    tasks: Tasks = Tasks()
    checkpoint: Checkpoint = Checkpoint()
    parallel: Parallel = Parallel()


__all__ = [
    "FORMAT", "Attention", "Checkpoint", "Data", "FFN", "Init", "Mamba", "MoE", "Model", "Multipliers", "Optim",
    "Parallel", "Parametrization", "Recipe", "RelativeLR", "RopeScaling", "Section", "SublayerVariant",
    "Tasks", "Training",
]
