"""The order in which the axes are applied to a model."""

import logging

import torch

from framework.model.attention import Attention
from framework.model.ffn import FFN
from framework.model.language_model import LanguageModel
from framework.parallelize.data import apply_data_parallelism
from framework.parallelize.expert import apply_expert_parallelism
from parallel import Mesh

log = logging.getLogger(__name__)


def parallelize(
    model: LanguageModel, mesh: Mesh, dtype: torch.dtype = torch.float32, reshard: bool = True, compile: bool = False
) -> LanguageModel:
    """Split a model over the ranks of a mesh, in place, and return it. Always applied, on one rank too.

    model: whole on every rank, with the same values (or all on the meta device: `to_empty` and `initialize` follow).
    dtype: of activations and matrix products. Parameters, gradients and optimizer state keep the model's own.
    reshard: free gathered weights between forward and backward; costs a second gathering, saves memory.
    compile: torch.compile each dense block.

    Afterwards parameters are DTensors; a backward leaves in each the gradient of the sum of all ranks' losses.
    Raises ValueError for an axis that does not stand yet, and for experts that do not divide by ep.
    """
    for axis in ("pp", "cp", "tp"):
        if (degree := getattr(mesh.sizes, axis)) > 1:
            raise ValueError(f"{axis}={degree}: this axis is not available yet, only dp_replicate, dp_shard and ep")
    apply_expert_parallelism(model, mesh)
    if compile:
        _compile_dense_blocks(model)
    apply_data_parallelism(model, mesh, dtype, reshard)
    return model


def _compile_dense_blocks(model: LanguageModel) -> None:
    """A MoE block stays eager: how many rows each expert gets is only known as it runs."""
    blocks = [module for module in model.modules() if isinstance(module, Attention | FFN)]
    for block in blocks:
        block.compile()
    log.info("compiled: %d attention and dense feed-forward blocks", len(blocks))
