"""Expert parallelism: each rank of an ep group holds an equal run of the experts; tokens travel to them."""

import logging

from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import Shard

from framework.model.language_model import LanguageModel
from framework.model.moe import Dispatcher, MixtureOfExperts, Parts, TokenParts
from parallel import AllToAllDispatcher, DeduplicatedDispatcher, Mesh, SymmetricMemory, SymmetricMemoryDispatcher
from parallel.collectives import all_gather, all_sum
from parallel.local_view import shard_parameters

log = logging.getLogger(__name__)

# By role: stacks of experts' matrices [E, ...] are split by expert. The router stays whole, for all experts.
PLACEMENTS = {"gate": Shard(0), "up": Shard(0), "down": Shard(0)}


class MeshParts(Parts):
    """Parts on the ranks of a mesh of one dimension, which hold consecutive ones."""

    def __init__(self, mesh: DeviceMesh) -> None:
        self.group, self.rank, self.count = mesh.get_group(), mesh.get_local_rank(), mesh.size()

    def sum(self, x: Tensor) -> Tensor:
        return all_sum(x, self.group)

    def gather(self, x: Tensor, dim: int) -> Tensor:
        return all_gather(x.detach(), dim, self.group)

    def own(self, whole: Tensor, dim: int) -> Tensor:
        return whole.chunk(self.count, dim)[self.rank]


def apply_expert_parallelism(
    model: LanguageModel, mesh: Mesh, deduplicate: bool = False, dispatch: str = "auto"
) -> None:
    """Split the experts of every MoE block, and let it route as one rank would, whatever tokens are on which rank.

    deduplicate: a token crosses to a rank once for all its experts there. dispatch: all_to_all, which auto means, or
    symmetric_memory, on GPUs of one machine. Router and selection bias stay whole.
    Raises ValueError where the number of experts does not divide by ep, or dispatch cannot be so.
    """
    if dispatch == "symmetric_memory" and mesh.device_type != "cuda":
        raise ValueError(f"dispatch=symmetric_memory needs GPUs, not {mesh.device_type}; allowed: auto, all_to_all")
    blocks = [module for module in model.modules() if isinstance(module, MixtureOfExperts)]
    share_tokens(model, mesh)
    for moe in blocks:
        _split_experts(moe, mesh)
    if not blocks or mesh.ep.size() == 1:
        return
    memory = SymmetricMemory(mesh.ep) if dispatch == "symmetric_memory" else None
    for moe in blocks:
        moe.dispatcher = make_dispatcher(moe, mesh, deduplicate, memory)
    log.info("expert parallel: %d MoE blocks over %d ranks%s%s", len(blocks), mesh.ep.size(),
             ", through symmetric memory" if memory else "", ", deduplicated dispatch" if deduplicate else "")


def make_dispatcher(moe: MixtureOfExperts, mesh: Mesh, deduplicate: bool, memory: SymmetricMemory | None) -> Dispatcher:
    """Of one block: through symmetric memory, or by all-to-all where there is none."""
    if memory is not None:
        settings = moe.settings
        # All experts may choose the same token.
        most_choices = settings.num_experts if settings.router == "expert_choice" else settings.top_k
        return SymmetricMemoryDispatcher(memory, most_choices, deduplicate)
    return (DeduplicatedDispatcher if deduplicate else AllToAllDispatcher)(mesh.ep)


def share_tokens(model: LanguageModel, mesh: Mesh) -> None:
    """Tell every MoE block which tokens of a forward are on other ranks."""
    token_parts = TokenParts(sequence=_parts(mesh.sequence), batch=_parts(mesh.batch), forward=_parts(mesh.stage))
    for module in model.modules():
        if isinstance(module, MixtureOfExperts):
            module.token_parts = token_parts


def _parts(mesh: DeviceMesh) -> Parts:
    return MeshParts(mesh) if mesh.size() > 1 else Parts()


def _split_experts(moe: MixtureOfExperts, mesh: Mesh) -> None:
    num_experts = moe.experts.up.shape[0]
    if num_experts % mesh.ep.size():
        raise ValueError(f"ep={mesh.ep.size()} must divide the {num_experts} experts")
    placements = {name: PLACEMENTS[name] for name, _ in moe.experts.named_parameters()}
    shard_parameters(moe.experts, mesh.ep, placements, leaves=mesh.sizes.pp == 1)
