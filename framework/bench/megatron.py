"""The same model in megatron-core on one GPU, with weights of its own: built as `upmix convert` describes it.

Its layers come from Transformer Engine where that is installed, else from megatron-core itself.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from framework.bench.peer import left_out
from framework.convert.factors import factors
from framework.convert.fields import Facts
from framework.convert.megatron import build as models
from framework.convert.megatron.target import choose
from framework.errors import UserError
from framework.packages import is_installed

if TYPE_CHECKING:
    from framework.recipe import Loaded

SPEC = "te"


def megatron_model(loaded: Loaded, device: torch.device) -> nn.Module:
    """A GPTModel or MambaModel in float32. The process must be in a process group, of one rank.

    Raises UserError without a GPU, with every reason why it cannot be the recipe's model or train as it does, or where
    it has experts, whose router in megatron-core takes Transformer Engine's products, and that is not installed.
    """
    if wrong := mismatches(loaded):
        raise UserError(f"--compare megatron: {'; '.join(wrong)}")
    if device.type != "cuda":
        raise UserError("--compare megatron: megatron-core runs on a GPU, and none is here; allowed: --compare hf")
    fused = is_installed("transformer-engine")
    if not fused and any(sublayer.kind == "moe" for sublayer in loaded.architecture.sublayers()):
        raise UserError("--compare megatron: megatron-core's experts need the package transformer-engine, which is not "
                        "installed; allowed without it: models without experts")
    return build(loaded, fused)


def mismatches(loaded: Loaded) -> list[str]:
    """Every reason against it; none: it can."""
    found = [f"a peer's steps have no {text}" for text in left_out(loaded)]
    if factors(loaded, False):
        found.append("weights of its own have no factors; allowed: a recipe without multipliers and mup")
    try:
        choose(loaded.architecture, SPEC)
    except UserError as error:
        found.append(str(error))
    return found


def build(loaded: Loaded, fused: bool) -> nn.Module:
    """The model; fused: of Transformer Engine's layers, else as far as a CPU can, which builds it but cannot run it.

    Experts are then a loop of single ones, and tokens travel by all-gather.
    """
    from megatron.core import parallel_state, tensor_parallel

    parallel_state.initialize_model_parallel()
    on_gpu = torch.cuda.is_available()
    if on_gpu:
        tensor_parallel.model_parallel_cuda_manual_seed(loaded.recipe.training.seed)
    target = choose(loaded.architecture, SPEC)
    arguments = target.write_config(Facts(loaded.architecture, loaded.recipe.data.seq_len, None, "float32"))
    return models.build(
        target.kind, target.spec, arguments, fused, moe_grouped_gemm=fused, use_cpu_initialization=not on_gpu,
        moe_token_dispatcher_type="alltoall" if on_gpu else "allgather", moe_router_load_balancing_type="none",
    )


def loss(model: nn.Module, tokens_BS: Tensor, targets_BS: Tensor) -> Tensor:
    """The mean cross entropy of the targets, in nats a token."""
    position_BS = torch.arange(tokens_BS.shape[1], device=tokens_BS.device).expand_as(tokens_BS)
    return model(tokens_BS, position_BS, None, labels=targets_BS).mean()
