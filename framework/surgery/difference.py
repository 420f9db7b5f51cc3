"""How far the new model's logits are from the dense one's. B batch, S sequence, V vocabulary."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.fsdp import FSDPModule

from framework.data.open import DataSet
from framework.model import Context, LanguageModel
from framework.parallelize.context import own_context
from parallel import Mesh
from parallel.context import own_part

MOST_TOKENS = 512


@dataclass(frozen=True)
class Difference:
    """Of float32 logits. max_abs: the largest. relative: ||new - dense|| / ||dense|| over all logits.

    tokens: how many were predicted. split: validation, or train where nothing is held out.
    """

    max_abs: float
    relative: float
    tokens: int
    split: str


def some_tokens(data: DataSet, seq_len: int, mesh: Mesh) -> tuple[Tensor, str]:
    """int64 [B, S]: the first validation windows, or training samples, and the name of the split.

    512 tokens at most: whole sequences, or the beginning of one as far as cp * tp divides it.
    """
    divisor = mesh.sizes.cp * mesh.sizes.tp
    length = seq_len if seq_len <= MOST_TOKENS else max(divisor, MOST_TOKENS // divisor * divisor)
    count = max(1, MOST_TOKENS // length)
    if data.validation.num_windows:
        tokens, split = data.validation.batch(0, min(count, data.validation.num_windows))[0], "validation"
    else:
        tokens, split = data.train.batch(0, count), "train"
    return torch.from_numpy(tokens)[:, :length].contiguous(), split


@torch.no_grad()
def logits(model: LanguageModel, mesh: Mesh, tokens_BS: Tensor) -> Tensor | None:
    """This rank's part of the logits [B, S, V] of a parallelized model, in evaluation, or None on a rank of a pipeline
    without the last stage. Collective; every rank gives the same tokens."""
    model.eval()
    tokens_BS = tokens_BS.to(mesh.device_type)
    found = model(tokens_BS, Context()) if mesh.sizes.pp == 1 else _through_stages(model, mesh, tokens_BS)
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()
    return found


def compare(dense: Tensor | None, new: Tensor | None, tokens_BS: Tensor, split: str) -> Difference:
    """The difference over all ranks' parts. Collective over the world.

    Ranks that have the same tokens count alike in numerator and denominator.
    """
    largest, squares = torch.zeros(1, dtype=torch.float64), torch.zeros(2, dtype=torch.float64)
    if dense is not None:
        change, whole = (new - dense).double(), dense.double()
        largest = change.abs().max()[None].cpu()
        squares = torch.stack([change.square().sum(), whole.square().sum()]).cpu()
    dist.all_reduce(largest, op=dist.ReduceOp.MAX)
    dist.all_reduce(squares)
    change, whole = squares.tolist()
    return Difference(largest.item(), (change / whole) ** 0.5, tokens_BS.numel(), split)


def _through_stages(model: LanguageModel, mesh: Mesh, tokens_BS: Tensor) -> Tensor | None:
    """One stage after the other, each on its rank: no schedule of a pipeline gives logits."""
    group, rank, num_ranks = mesh.pp.get_group(), mesh.pp.get_local_rank(), mesh.sizes.pp
    num_stages = next(iter(model.stages.values())).num_stages
    position_BS = None
    if mesh.sizes.cp > 1:
        whole = own_context(Context(), tokens_BS.shape[1], mesh, tokens_BS.device).position_BS
        tokens_BS, position_BS = own_part(tokens_BS, mesh.cp), whole.expand(len(tokens_BS), -1)
    shape = len(tokens_BS), tokens_BS.shape[1] // mesh.sizes.tp, model.d_model
    x = tokens_BS
    for number in range(num_stages):
        if number % num_ranks != rank:
            continue
        if number > 0:
            x = torch.empty(shape, device=tokens_BS.device)
            dist.recv(x, dist.get_global_rank(group, (number - 1) % num_ranks), group=group)
        x = model.stages[number](x, position_BS=position_BS)
        if number < num_stages - 1:
            dist.send(x.contiguous(), dist.get_global_rank(group, (number + 1) % num_ranks), group=group)
    return x if num_stages - 1 in model.stages else None
