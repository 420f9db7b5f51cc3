"""Recomputation: the backward computes again what the forward did not keep.

Exact, as nothing in a model is random: every result comes out as it was, and what is counted is counted once.
"""

import logging
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import partial

import torch
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import create_selective_checkpoint_contexts

from framework.model.language_model import LanguageModel
from framework.model.moe import MixtureOfExperts
from framework.model.residual import ParallelResidual
from kernels.moe import fused_experts  # noqa: F401  which makes the operators known
from kernels.ssm import selective_scan, ssd  # noqa: F401

log = logging.getLogger(__name__)

Contexts = tuple[AbstractContextManager, AbstractContextManager]
"""What surrounds a forward, and what surrounds its repetition."""

KEPT = (
    *(getattr(torch.ops.aten, name).default for name in (
        "mm", "addmm", "bmm", "baddbmm", "_grouped_mm", "_scaled_dot_product_flash_attention",
        "_scaled_dot_product_flash_attention_for_cpu", "_scaled_dot_product_efficient_attention",
        "_scaled_dot_product_cudnn_attention", "_scaled_dot_product_fused_attention_overrideable",
    )),
    *(getattr(torch.ops.upmix, name).default for name in ("expert_ffn", "ssd", "selective_scan")),
    *(getattr(torch.ops._c10d_functional, name).default for name in (
        "all_gather_into_tensor", "reduce_scatter_tensor", "all_to_all_single", "all_reduce", "wait_tensor",
    )),
)
"""What selective recomputation keeps: the results of products, attention, experts, scans and exchanges between ranks.

Not what is written into a tensor that stands already (`out=`), as the products of experts are on a CPU. Blocks must
not change in place what is kept: the repetition would start from the changed values, and PyTorch may not notice.
"""


def apply_recompute(model: LanguageModel, kind: str) -> None:
    """Let every sublayer (a branch of a residual layer, its norm included) compute its activations twice, in place.

    kind: "full" keeps only the inputs of sublayers (https://arxiv.org/abs/1604.06174), "selective" also the results of
    operations in KEPT, so that what is repeated is cheap; with "none" nothing is repeated. A block that is compiled is
    one operation, and repeated whole.

    Apply after `shard_parameters`, whose local views the repetition needs too, and before `fully_shard`.
    """
    if kind == "none":
        return
    num_sublayers = 0
    for sublayers, key in list(_sublayers(model)):
        sublayers[key] = _repeated(sublayers[key], kind == "selective")
        num_sublayers += 1
    log.info("recompute: %s, in %d sublayers", kind, num_sublayers)


def _sublayers(model: LanguageModel) -> Iterator[tuple[nn.ModuleDict | nn.ModuleList, str | int]]:
    """Where each sublayer stands: a container and the key in it."""
    for key, layer in model.layers.items():
        if isinstance(layer, ParallelResidual):
            yield from ((layer.branches, index) for index in range(len(layer.branches)))
        else:
            yield model.layers, key


def _repeated(sublayer: nn.Module, selective: bool) -> nn.Module:
    statistics = [module.statistics for module in sublayer.modules() if isinstance(module, MixtureOfExperts)]
    return checkpoint_wrapper(
        sublayer, preserve_rng_state=False, context_fn=partial(_contexts, statistics, selective),
    )


def _contexts(statistics: list, selective: bool) -> Contexts:
    forward, again = nullcontext(), nullcontext()
    if selective:
        forward, again = (_OnlyKept(mode) for mode in create_selective_checkpoint_contexts(list(KEPT)))
    return forward, _uncounted(again, statistics)


class _OnlyKept(TorchDispatchMode):
    """Hands the operations in KEPT to one of PyTorch's modes of selective recomputation.

    Those want to see the same operations in the forward and its repetition. Around experts `fully_shard` runs others,
    according to which weights are gathered at the time.
    """

    def __init__(self, mode: TorchDispatchMode) -> None:
        super().__init__()
        self.mode = mode

    @classmethod
    def ignore_compile_internals(cls) -> bool:
        """A compiled block runs compiled here too; what is in it is not kept."""
        return True

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func in KEPT:
            return self.mode.__torch_dispatch__(func, types, args, kwargs)
        return func(*args, **(kwargs or {}))


@contextmanager
def _uncounted(again: AbstractContextManager, statistics: list) -> Iterator[None]:
    with ExitStack() as stack:
        for counts in statistics:
            stack.enter_context(counts.paused())
        stack.enter_context(again)
        yield
