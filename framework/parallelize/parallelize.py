"""The order in which the axes are applied to a model."""

from collections.abc import Sequence

import torch

from framework.model.language_model import LanguageModel
from framework.parallelize.compile import apply_compile
from framework.parallelize.context import apply_context_parallelism
from framework.parallelize.data import apply_data_parallelism
from framework.parallelize.expert import apply_expert_parallelism
from framework.parallelize.pipeline import cut_into_stages, make_stages
from framework.parallelize.recompute import apply_recompute
from framework.parallelize.tensor import apply_tensor_parallelism
from parallel import Mesh


def parallelize(
    model: LanguageModel, mesh: Mesh, dtype: torch.dtype = torch.float32, reshard: bool = True, compile: bool = False,
    recompute: str = "none", dedup_dispatch: bool = False, stages: Sequence[range] | None = None,
    dispatch: str = "auto",
) -> LanguageModel:
    """Split a model over the ranks of a mesh, in place, and return it. Always applied, on one rank too.

    model: whole on every rank, with the same values (or all on the meta device: `to_empty` and `initialize` follow).
    dtype: of activations and matrix products. Parameters, gradients and optimizer state keep the model's own.
    reshard: free gathered weights between forward and backward; costs a second gathering, saves memory.
    compile: torch.compile each dense block. recompute: as `apply_recompute` takes it.
    dispatch, dedup_dispatch: how tokens reach experts, as `apply_expert_parallelism` takes it.
    stages: the layers of each stage of the pipeline; needed where pp > 1. The model then keeps what this rank's stages
        hold, and `LanguageModelPipeline` runs it.

    Afterwards parameters are DTensors; a backward leaves in each the gradient of the sum of all ranks' losses.
    Raises ValueError, with the arithmetic, where sizes do not divide.
    """
    if mesh.pp.size() > 1:
        cut_into_stages(model, mesh, stages)
    apply_context_parallelism(model, mesh)
    apply_tensor_parallelism(model, mesh)
    apply_expert_parallelism(model, mesh, dedup_dispatch, dispatch)
    apply_recompute(model, recompute)
    if compile:
        apply_compile(model)
    if mesh.pp.size() > 1:
        make_stages(model, mesh, stages, dtype)
    apply_data_parallelism(model, mesh, dtype, reshard)
    return model
