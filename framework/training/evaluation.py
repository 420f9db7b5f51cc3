"""Loss over the whole validation stream.

Shapes: B batch, S sequence.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from framework.model import Context
from framework.training.transfer import to_device

if TYPE_CHECKING:
    from framework.data.batches import TrainData, ValidationData


@dataclass(frozen=True)
class Evaluation:
    """val_loss: nats a token. val_bits_per_byte: bits a byte of the original text; None where its size is not known."""

    val_loss: float
    val_bits_per_byte: float | None


def num_batches(validation: ValidationData, batch_size: int, count: int = 1) -> int:
    """Forwards that each of `count` ranks makes with `batch_size` windows each."""
    return -(-validation.num_windows // (batch_size * count))


def document_context(
    split: TrainData | ValidationData, samples: tuple[int, int], isolate_documents: bool, device: torch.device,
    num_sequences: float = 1.0,
) -> Context:
    """The context of samples (first, count) of a split, with their documents where these are isolated."""
    document_BS = to_device(split.documents(*samples), device) if isolate_documents else None
    return Context(document_BS=document_BS, num_sequences=num_sequences)


@torch.no_grad()
def evaluate(
    model: nn.Module, validation: ValidationData, batch_size: int, isolate_documents: bool, device: torch.device,
    index: int = 0, count: int = 1, sum_over_ranks: Callable[[Tensor], Tensor] = lambda nats: nats,
    goes_on: Callable[[], bool] = lambda: True, nats_of: Callable[[Tensor, Context, Tensor], Tensor] | None = None,
) -> Evaluation | None:
    """Predict every token of the stream once; rank `index` of `count` takes every count-th batch of windows.

    Every rank makes the same number of forwards, the last ones without targets, since sharded models need all ranks in
    each. Leaves the model in evaluation mode. nats_of: what is called in the model's place, with the same arguments.
    goes_on: asked after every forward; where it says no, to all ranks after the same one, the result is None.
    """
    model.eval()
    nats_of = nats_of or model
    nats, complete = torch.zeros((), dtype=torch.float64, device=device), True
    for turn in range(num_batches(validation, batch_size, count)):
        windows = (turn * count + index) * batch_size, batch_size
        tokens_BS, targets_BS = (to_device(array, device) for array in validation.batch(*windows))
        context = document_context(validation, windows, isolate_documents, device)
        nats += nats_of(tokens_BS, context, targets_BS)
        if not goes_on():
            complete = False
            break
    reshard(model)
    if not complete:
        return None
    total = sum_over_ranks(nats).item()
    bits_per_byte = total / math.log(2) / validation.num_bytes if validation.num_bytes else None
    return Evaluation(total / validation.num_tokens, bits_per_byte)


def reshard(model: nn.Module) -> None:
    """Free the weights that forwards without a backward have left gathered."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()
