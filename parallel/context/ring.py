"""Ring attention: queries stay, keys and values travel round the ranks, for any number of heads.

B batch, S tokens of this rank's part, L keys of a part, H query heads, G key and value heads, J query heads of each,
P head width.
"""

from collections.abc import Iterator

import torch
import torch.distributed as dist
from torch import Tensor, library
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.distributed_c10d import _resolve_process_group

from parallel.context.neighbours import pass_on
from parallel.context.online_softmax import AttentionGradient, OnlineSoftmax
from parallel.context.visibility import Tile, Visibility


def ring_attend(
    q_BSHP: Tensor, k_BSGP: Tensor, v_BSGP: Tensor, scale: float, window: int | None, document_BS: Tensor | None,
    *, cp: DeviceMesh,
) -> Tensor:
    """Causal attention of this rank's queries to the whole sequence: [B, S, H, P] (https://arxiv.org/abs/2310.01889).

    document_BS: of the whole sequence, int64 [B, S*cp]. Arithmetic is float32 at least, in plain matrix products; the
    result has q's dtype. Kept for the backward: the arguments, the output and a number per query and head; keys and
    values travel again there, and their gradients with them. A transfer runs while the block before it is computed.

    Rank r attends to its own part and the r before it, and waits for the last rank, which attends to all: without a
    window (cp - 1) / (2 cp - 1) of the ranks' time is idle, a third at cp=2 and nearly half at many, as consecutive
    parts cannot share causal work evenly. Blocks wholly in the future are not computed, but travel. With a window,
    parts travel no farther than it reaches.
    """
    group_name = cp.get_group().group_name
    return ring_attention(q_BSHP, k_BSGP, v_BSGP, scale, window, document_BS, group_name)[0]


@library.custom_op("upmix::ring_attention", mutates_args=())
def ring_attention(
    q_BSHP: Tensor, k_BSGP: Tensor, v_BSGP: Tensor, scale: float, window: int | None, document_BS: Tensor | None,
    group_name: str,
) -> tuple[Tensor, Tensor]:
    """The output, and the log-sum-exp of each query's scores, [B, G, J, S, 1].

    One operation to compilation and to selective recomputation, which would keep each tile's products otherwise.
    """
    softmax = OnlineSoftmax(_grouped(q_BSHP, k_BSGP.shape[2]) * scale)
    visibility, group = Visibility(window, document_BS), _resolve_process_group(group_name)
    for _, k_BGLP, v_BGLP, tiles in _blocks(k_BSGP, v_BSGP, visibility, group):
        softmax.add(k_BGLP, v_BGLP, tiles)
    y_BGJSP, logsumexp_BGJS1 = softmax.result()
    return _ungrouped(y_BGJSP).to(q_BSHP.dtype), logsumexp_BGJS1


@library.custom_op("upmix::ring_attention_backward", mutates_args=())
def ring_attention_backward(
    dy_BSHP: Tensor, q_BSHP: Tensor, k_BSGP: Tensor, v_BSGP: Tensor, y_BSHP: Tensor, logsumexp_BGJS1: Tensor,
    scale: float, window: int | None, document_BS: Tensor | None, group_name: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of queries, keys and values. A block's gradient follows the block round the ranks, and from where
    the block ends goes straight home."""
    q_BGJSP, y_BGJSP, dy_BGJSP = (_grouped(heads, k_BSGP.shape[2]) for heads in (q_BSHP, y_BSHP, dy_BSHP))
    gradient = AttentionGradient(q_BGJSP * scale, y_BGJSP, logsumexp_BGJS1, dy_BGJSP)
    visibility, group = Visibility(window, document_BS), _resolve_process_group(group_name)
    num_hops, arriving = _num_hops(window, q_BSHP.shape[1], group), None
    for hop, k_BGLP, v_BGLP, tiles in _blocks(k_BSGP, v_BSGP, visibility, group):
        dkv_2BGLP = torch.stack(gradient.of_block(k_BGLP, v_BGLP, tiles))
        if arriving is not None:
            dkv_2BGLP += arriving()
        arriving = pass_on(dkv_2BGLP, 1 if hop < num_hops else -num_hops, group)
    dk_BSGP, dv_BSGP = (torch.empty_like(k_BSGP).copy_(dkv) for dkv in arriving().transpose(2, 3))
    return _ungrouped(gradient.dq_BGJSP * scale).to(q_BSHP.dtype), dk_BSGP, dv_BSGP


@ring_attention.register_fake
def _(q_BSHP, k_BSGP, v_BSGP, scale, window, document_BS, group_name):
    batch_size, seq_len, num_heads, _ = q_BSHP.shape
    num_kv_heads = k_BSGP.shape[2]
    logsumexp_shape = batch_size, num_kv_heads, num_heads // num_kv_heads, seq_len, 1
    return q_BSHP.new_empty(q_BSHP.shape), q_BSHP.new_empty(logsumexp_shape, dtype=_wide(q_BSHP))


@ring_attention_backward.register_fake
def _(dy_BSHP, q_BSHP, k_BSGP, v_BSGP, y_BSHP, logsumexp_BGJS1, scale, window, document_BS, group_name):
    return q_BSHP.new_empty(q_BSHP.shape), torch.empty_like(k_BSGP), torch.empty_like(k_BSGP)


def _keep(ctx, inputs, output) -> None:
    *heads, ctx.scale, ctx.window, document_BS, ctx.group_name = inputs
    ctx.save_for_backward(*heads, *output, document_BS)


def _differentiate(ctx, dy_BSHP, _):
    *tensors, document_BS = ctx.saved_tensors
    gradients = ring_attention_backward(dy_BSHP, *tensors, ctx.scale, ctx.window, document_BS, ctx.group_name)
    return *gradients, None, None, None, None


ring_attention.register_autograd(_differentiate, setup_context=_keep)


def _blocks(
    k_BSGP: Tensor, v_BSGP: Tensor, visibility: Visibility, group: dist.ProcessGroup
) -> Iterator[tuple[int, Tensor, Tensor, Iterator[Tile]]]:
    """Hop, keys and values [B, G, L, P] in the arithmetic's dtype, and tiles with this rank's queries, of the own part
    first and then of those that come round. The next part is on its way while the consumer works on one."""
    size, num_hops, wide = k_BSGP.shape[1], _num_hops(visibility.window, k_BSGP.shape[1], group), _wide(k_BSGP)
    kv_2BLGP, places = torch.stack([k_BSGP, v_BSGP]), _places(group.rank(), size)
    for hop in range(num_hops + 1):
        arriving = pass_on(kv_2BLGP, 1 if hop < num_hops else 0, group)
        # Before rank 0 comes the last rank, whose part lies in the future.
        source = (group.rank() - hop) % group.size()
        k_BGLP, v_BGLP = kv_2BLGP.to(wide).transpose(2, 3)
        yield hop, k_BGLP, v_BGLP, visibility.tiles(places, _places(source, size), k_BSGP.device)
        kv_2BLGP = arriving()


def _num_hops(window: int | None, part_size: int, group: dist.ProcessGroup) -> int:
    """How many ranks on a part must go to meet every query that sees some of it; the same on all ranks."""
    farthest = group.size() - 1
    return farthest if window is None else min(farthest, -(-(window - 1) // part_size))


def _places(rank: int, part_size: int) -> range:
    """The places of a part's tokens in the sequence."""
    return range(rank * part_size, (rank + 1) * part_size)


def _wide(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


def _grouped(x_BSHP: Tensor, num_kv_heads: int) -> Tensor:
    """[B, S, H, P] -> [B, G, J, S, P], in the arithmetic's dtype."""
    return x_BSHP.to(_wide(x_BSHP)).unflatten(2, (num_kv_heads, -1)).movedim(1, 3)


def _ungrouped(x_BGJSP: Tensor) -> Tensor:
    return x_BGJSP.movedim(3, 1).flatten(2, 3).contiguous()
