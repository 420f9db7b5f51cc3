"""Expert parallelism: each rank of an ep group holds an equal run of the experts; tokens travel to them."""

import logging
from functools import partial

from torch.distributed.tensor import Shard

from framework.model.language_model import LanguageModel
from framework.model.moe import MixtureOfExperts
from parallel import AllToAllDispatcher, Mesh
from parallel.collectives import all_sum
from parallel.local_view import shard_parameters

log = logging.getLogger(__name__)

# By role: stacks of experts' matrices [E, ...] are split by expert. The router stays whole, for all experts.
PLACEMENTS = {"gate": Shard(0), "up": Shard(0), "down": Shard(0)}


def apply_expert_parallelism(model: LanguageModel, mesh: Mesh) -> None:
    """Split the experts of every MoE block, and let its statistics span the ranks that share what they describe.

    Raises ValueError where the number of experts does not divide by ep.
    """
    blocks = [module for module in model.modules() if isinstance(module, MixtureOfExperts)]
    for moe in blocks:
        _split_experts(moe, mesh)
        # Sums over one rank are the identity that the block starts with.
        if mesh.sequence.size() > 1:
            moe.reduce_sequence = partial(all_sum, group=mesh.sequence.get_group())
        if mesh.stage.size() > 1:
            moe.reduce_forward = partial(all_sum, group=mesh.stage.get_group())
    if blocks and mesh.ep.size() > 1:
        log.info("expert parallel: %d MoE blocks over %d ranks", len(blocks), mesh.ep.size())


def _split_experts(moe: MixtureOfExperts, mesh: Mesh) -> None:
    num_experts = moe.experts.up.shape[0]
    if num_experts % mesh.ep.size():
        raise ValueError(f"ep={mesh.ep.size()} must divide the {num_experts} experts")
    placements = {name: PLACEMENTS[name] for name, _ in moe.experts.named_parameters()}
    shard_parameters(moe.experts, mesh.ep, placements, leaves=mesh.sizes.pp == 1)
    if mesh.ep.size() > 1:
        moe.dispatcher = AllToAllDispatcher(mesh.ep)
