"""Tensor and sequence parallelism: ranks split heads, channels and vocabulary, and between blocks the tokens.

A block gathers its ranks' tokens, computes its part of the width and scatters the sum of the parts by tokens again
(https://arxiv.org/abs/2205.05198). Norms, routers and experts see a rank's own tokens.
"""

import logging
from collections.abc import Callable
from functools import partial

from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import Partial, Shard

from framework.model.attention import Attention
from framework.model.ffn import FFN
from framework.model.language_model import LanguageModel
from framework.model.mamba1 import Mamba1
from framework.model.mamba2 import Mamba2
from framework.model.moe import MixtureOfExperts
from framework.model.moe.experts import Experts
from framework.model.norm import RMSNorm
from framework.model.residual import Branch
from framework.recipe.layout_fit import SPLIT_BY_TENSOR, indivisible
from parallel import Mesh
from parallel.local_view import shard_parameters
from parallel.tensor import (
    gated_normalize_groups,
    gather_input,
    normalize_groups,
    pick_groups,
    scatter_output,
    sum_output,
)
from parallel.vocabulary import VocabularyShard

log = logging.getLogger(__name__)

# A matrix is [outputs, inputs]. Vectors, convolutions and rates of the split channels or heads have them first too.
OUTPUTS, INPUTS = Shard(0), Shard(1)

# By block, then by the name of what it consists of: how all its parameters are split. What is not named is whole on
# every rank, and each rank's gradient is a term of it: from its own tokens, or from its own heads and channels.
PLACEMENTS: dict[type[nn.Module], dict[str, Shard]] = {
    Attention: {"q": OUTPUTS, "k": OUTPUTS, "v": OUTPUTS, "q_norm": OUTPUTS, "k_norm": OUTPUTS, "out": INPUTS},
    FFN: {"gate": OUTPUTS, "up": OUTPUTS, "down": INPUTS},
    Mamba1: {
        "z": OUTPUTS, "x": OUTPUTS, "conv": OUTPUTS, "B": INPUTS, "C": INPUTS, "dt_low": INPUTS, "dt": OUTPUTS,
        "dynamics": OUTPUTS, "out": INPUTS,
    },
    Mamba2: {
        "z": OUTPUTS, "x": OUTPUTS, "B": OUTPUTS, "C": OUTPUTS, "dt": OUTPUTS, "conv_x": OUTPUTS, "conv_B": OUTPUTS,
        "conv_C": OUTPUTS, "dynamics": OUTPUTS, "norm": OUTPUTS, "out": INPUTS,
    },
}


def apply_tensor_parallelism(model: LanguageModel, mesh: Mesh) -> None:
    """Split every block and the vocabulary over the ranks of `mesh.tp`; whatever is outside them sees sequence shards.

    Embedding, final norm and unembedding may be missing, as on a stage of a pipeline. The experts of an MoE block are
    left to expert parallelism. Raises ValueError where heads, channels or vocabulary cannot be split; a forward does
    where tp does not divide the tokens of a sequence.
    """
    if mesh.tp.size() == 1:
        return
    split = _split_blocks(model, mesh.tp) | _split_vocabulary(model, mesh.tp)
    shared = {}
    for module in _with_dense_parameters(model):
        names = [name for name, _ in module.named_parameters(recurse=False)]
        if module in split:
            shard_parameters(module, mesh.tp, dict.fromkeys(names, split[module]), shared=shared)
        else:
            shard_parameters(module, mesh.tp, {}, dict.fromkeys(names, Partial()), shared=shared)
    num_blocks = sum(type(module) in PLACEMENTS for module in model.modules())
    log.info("tensor and sequence parallel: %d blocks over %d ranks", num_blocks, mesh.tp.size())


def _with_dense_parameters(model: LanguageModel) -> list[nn.Module]:
    return [
        module for module in model.modules()
        if not isinstance(module, Experts) and any(True for _ in module.parameters(recurse=False))
    ]


def _split_blocks(model: LanguageModel, tp: DeviceMesh) -> dict[nn.Module, Shard]:
    """Put the collectives and seams into every block; return how the parameters of the modules in them are split."""
    split, group = {}, tp.get_group()
    for module in model.modules():
        if isinstance(module, Branch):
            known = (*PLACEMENTS, MixtureOfExperts)
            assert type(module.block) in known, f"{type(module.block).__name__} would mix only a rank's own tokens"
        if type(module) in PLACEMENTS:
            names = PLACEMENTS[type(module)].keys() - _ADAPT[type(module)](module, tp)
            split |= {child: PLACEMENTS[type(module)][name] for name, child in module.named_children() if name in names}
            gather_input(module, group)
            scatter_output(module, group)
    return split


def _require_divisible(kind: str, size: int, tp: DeviceMesh) -> None:
    if misfit := indivisible("tp", tp.size(), size, SPLIT_BY_TENSOR[kind]):
        raise ValueError(misfit)


def _adapt_attention(attention: Attention, tp: DeviceMesh) -> set[str]:
    """Where key-value heads do not divide, each rank computes all and keeps those that its query heads read."""
    settings, whole = attention.settings, set()
    _require_divisible("attention", settings.num_heads, tp)
    if settings.num_kv_heads % tp.size():
        attention.own_kv_heads = _pick_groups(settings.num_heads, settings.num_kv_heads, tp)
        whole |= {"k", "v", "k_norm"}
    if settings.qk_norm == "head":
        return whole | {"q_norm", "k_norm"}
    if settings.qk_norm == "full":
        for name in {"q_norm", "k_norm"} - whole:
            _normalize_over_ranks(getattr(attention, name), tp)
    return whole


def _pick_groups(num_heads: int, num_groups: int, tp: DeviceMesh) -> Callable[[Tensor], Tensor]:
    return pick_groups(num_heads, num_groups, tp.get_local_rank(), tp.size(), tp.device_type)


def _normalize_over_ranks(norm: RMSNorm, tp: DeviceMesh) -> None:
    width, group = norm.weight.shape[0], tp.get_group()

    def normalize(x: Tensor, weight_W: Tensor, eps: float) -> Tensor:
        return normalize_groups(x, width, eps, group) * weight_W

    norm.normalize = normalize


def _adapt_ffn(ffn: FFN, tp: DeviceMesh) -> set[str]:
    _require_divisible("ffn", ffn.up.weight.shape[0], tp)
    return set()


def _adapt_mamba1(mamba: Mamba1, tp: DeviceMesh) -> set[str]:
    """What all channels make together is summed over them; its norms then see it whole, for a part of the channels."""
    _require_divisible("mamba1", mamba.x.weight.shape[0], tp)
    for projection in (mamba.B, mamba.C, mamba.dt_low):
        sum_output(projection, tp.get_group())
    return set()


def _adapt_mamba2(mamba: Mamba2, tp: DeviceMesh) -> set[str]:
    """Where groups do not divide, each rank computes all and keeps those that its heads read; the norm's span ranks."""
    num_heads, num_groups = mamba.dt.weight.shape[0], mamba.B.weight.shape[0] // mamba.d_state
    _require_divisible("mamba2", num_heads, tp)
    if num_groups % tp.size() == 0:
        return set()
    mamba.own_groups = _pick_groups(num_heads, num_groups, tp)
    mamba.norm.normalize = partial(gated_normalize_groups, group=tp.get_group())
    return {"B", "C", "conv_B", "conv_C"}


# They put into a block what its split needs, and return the names of PLACEMENTS that stay whole in this one.
_ADAPT: dict[type[nn.Module], Callable[..., set[str]]] = {
    Attention: _adapt_attention, FFN: _adapt_ffn, Mamba1: _adapt_mamba1, Mamba2: _adapt_mamba2,
}


def _split_vocabulary(model: LanguageModel, tp: DeviceMesh) -> dict[nn.Module, Shard]:
    ends = [module for module in (model.embedding, model.unembedding) if module is not None]
    if not ends:
        return {}
    vocabulary = VocabularyShard(ends[0].weight.shape[0], tp.get_group())
    if model.embedding is not None:
        model.embedding.look_up = vocabulary.look_up
    if model.unembedding is not None:
        model.unembedding.cross_entropy = vocabulary.cross_entropy
        gather_input(model.unembedding, tp.get_group())
        model.unembedding.register_forward_hook(partial(_gather_logits, vocabulary))
    return dict.fromkeys(ends, OUTPUTS)


def _gather_logits(vocabulary: VocabularyShard, module: nn.Module, inputs: tuple, output: Tensor) -> Tensor:
    """Logits are [B, S, rows of this rank], a loss is a scalar."""
    return vocabulary.gather_logits(output) if output.ndim == 3 else output
