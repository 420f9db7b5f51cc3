"""Context parallelism: each rank of cp holds a consecutive part of every sequence; mixing blocks reach across.

B batch, S sequence.
"""

import inspect
import logging
from collections import Counter
from dataclasses import replace
from functools import partial

import torch
from torch import nn

from framework.model.attention import Attention, attend
from framework.model.context import Context
from framework.model.language_model import LanguageModel
from framework.model.mamba1 import Mamba1
from framework.model.mamba2 import Mamba2
from framework.model.ssm import CausalConvolution
from parallel import Mesh
from parallel.context import convolve_parts, own_part, part_size, ring_attend, scan_parts, ssd_parts, ulysses_attend

log = logging.getLogger(__name__)


def apply_context_parallelism(model: LanguageModel, mesh: Mesh) -> None:
    """Let every rank run the model on its part of each sequence. Apply before tensor parallelism.

    The model is still called with whole sequences, the same on all ranks of cp; it returns the part's sum of cross
    entropies, or the part's logits. A forward raises ValueError where a sequence does not divide by cp * tp, or a
    part is shorter than what a convolution reaches back.
    """
    if mesh.cp.size() == 1:
        return
    mix_across_ranks(model, mesh)
    model.register_forward_pre_hook(partial(_cut, mesh=mesh), with_kwargs=True)


def mix_across_ranks(model: nn.Module, mesh: Mesh) -> None:
    """Replace what mixes tokens in every block below `model`, also a stage of a pipeline, by what spans cp."""
    kinds = Counter()
    for module in model.modules():
        if isinstance(module, Attention):
            kinds[_span_attention(module, mesh)] += 1
        elif isinstance(module, CausalConvolution):
            module.convolve = partial(convolve_parts, cp=mesh.cp)
        elif isinstance(module, Mamba1):
            module.scan = partial(scan_parts, cp=mesh.cp)
            kinds["state passing"] += 1
        elif isinstance(module, Mamba2):
            module.scan = partial(ssd_parts, cp=mesh.cp)
            kinds["state passing"] += 1
    blocks = ", ".join(f"{count} x {kind}" for kind, count in kinds.items())
    log.info("context parallel: sequences in %d parts, %s", mesh.cp.size(), blocks or "nothing mixes tokens")


def _span_attention(attention: Attention, mesh: Mesh) -> str:
    """Heads are swapped for tokens where each rank of cp can have some of this rank's; keys travel round otherwise."""
    num_heads = attention.settings.num_heads // mesh.tp.size()
    if num_heads % mesh.cp.size() == 0:
        attention.attend = partial(ulysses_attend, attend=attend, cp=mesh.cp)
        return "all-to-all over heads"
    attention.attend = partial(ring_attend, cp=mesh.cp)
    return "ring attention"


def own_context(context: Context, seq_len: int, mesh: Mesh, device: torch.device) -> Context:
    """A context whose positions are those of this rank's part; documents stay those of the whole sequence.

    seq_len: of the whole sequence. Raises ValueError where it does not divide by cp, or a part by tp.
    """
    if part_size(seq_len, mesh.cp) % mesh.tp.size():
        raise ValueError(f"cp*tp={mesh.cp.size()}*{mesh.tp.size()} must divide the {seq_len} tokens of a sequence")
    position_BS = context.position_BS
    if position_BS is None:
        position_BS = torch.arange(seq_len, device=device)[None]
    return replace(context, position_BS=own_part(position_BS, mesh.cp))


def _cut(model: LanguageModel, args: tuple, kwargs: dict, mesh: Mesh) -> tuple[tuple, dict]:
    call = inspect.signature(model.forward).bind(*args, **kwargs)
    values = call.arguments
    assert values.get("cache") is None, "a cache holds whole sequences, a rank of cp parts of them"
    tokens_BS = values["tokens_BS"]
    values["context"] = own_context(values["context"], tokens_BS.shape[1], mesh, tokens_BS.device)
    values["tokens_BS"] = own_part(tokens_BS, mesh.cp)
    values["targets_BS"] = own_part(values.get("targets_BS"), mesh.cp)
    return call.args, call.kwargs
