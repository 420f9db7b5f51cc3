"""Data parallelism: parameters, gradients and optimizer state sharded over ranks that see other data."""

import logging
from collections.abc import Callable
from functools import partial

import torch
from torch import nn
from torch.distributed.fsdp import MixedPrecisionPolicy

from framework.model.language_model import LanguageModel
from framework.model.moe import MixtureOfExperts
from parallel import Mesh
from parallel.fsdp import expert_placement, precision, shard

log = logging.getLogger(__name__)


def apply_data_parallelism(model: LanguageModel, mesh: Mesh, dtype: torch.dtype, reshard: bool) -> None:
    """Shard from the inside out: experts, then what stays float32, then layers, then the rest of the model.

    Also where every mesh has one rank: all layouts then have the same kinds of parameters and the same code.
    """
    policy = precision(dtype)
    # A rank of a pipeline runs several micro-batches at a time, and splits their backwards: weights stay gathered.
    reshard = reshard and mesh.sizes.pp == 1
    unit = partial(shard, in_place=mesh.sizes.tp == mesh.sizes.pp == 1)
    for layer in model.layers.values():
        experts = [module.experts for module in layer.modules() if isinstance(module, MixtureOfExperts)]
        for stack in experts:
            unit(stack, mesh.expert_shards, policy, reshard, expert_placement(mesh.expert_dp.size()))
        if policy.param_dtype is not None:
            _shard_float32_parts(layer, mesh, unit)
        unit(layer, mesh.dense_shards, policy, reshard, apart=experts)
    if mesh.sizes.pp > 1:
        _shard_stages(model, mesh, unit, policy)
    else:
        if not model.tied:
            # Neither is needed while layers run. A tied matrix is used at both ends: the whole model's unit keeps it.
            unit(model.embedding, mesh.dense_shards, policy, reshard)
            unit([model.final_norm, model.unembedding], mesh.dense_shards, policy, False)
        unit(model, mesh.dense_shards, policy, False)
    sizes = mesh.sizes
    log.info("data parallel: %d replicas of %d shards, experts %d shards, %s",
             sizes.dp_replicate, sizes.dp_shard * sizes.cp, sizes.expert_dp, str(dtype).removeprefix("torch."))


def _shard_stages(model: LanguageModel, mesh: Mesh, unit: Callable[..., None], policy: MixedPrecisionPolicy) -> None:
    """The ends that stand here, and each stage as a root, which a schedule tells when to gather and when to reduce."""
    for stage in model.stages.values():
        if stage.embedding is not None:
            unit(stage.embedding, mesh.dense_shards, policy, False)
        if stage.unembedding is not None:
            unit([stage.final_norm, stage.unembedding], mesh.dense_shards, policy, False)
        unit(stage, mesh.dense_shards, policy, False)


def _shard_float32_parts(layer: nn.Module, mesh: Mesh, unit: Callable[..., None]) -> None:
    """Modules that say `keep_float32` get their weights as they are, also when the rest is computed in bfloat16.

    They are small and may hand their weights on from their forward: gathered once, kept until the backward is over.
    """
    for module in layer.modules():
        if getattr(module, "keep_float32", False):
            unit(module, mesh.dense_shards, precision(torch.float32), False)
