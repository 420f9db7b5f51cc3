"""The dispatch over ranks' memory in loopback: all ranks of a group are buffers of one GPU.

What crosses a link between GPUs crosses the GPU's own memory instead, so that the copy bandwidth is the ceiling.
R ranks, T tokens of all of them, D model width, E experts, K choices per token, M = T K rows.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from framework.bench.kernels.case import Arguments, Case, Work
from framework.bench.kernels.moe_cases import SHAPES, MoE
from kernels.moe import symmetric
from kernels.moe.peers import Layout, Peers
from kernels.moe.rows import TokenRows, rows_of_choices
from kernels.moe.sort import sort_by_expert

NUM_RANKS = 4
TURN = 3
"""The first of a round trip. All round trips take the same ones: in a single process nobody is ever waited for."""


class Routing(NamedTuple):
    """Of one rank's tokens, known before they go: rows sorted by expert, and those of each token."""

    token_M: Tensor
    gate_M: Tensor
    counts_E: Tensor
    rows: TokenRows


def cases() -> list[Case]:
    _, b, _, d, e = SHAPES
    return [dispatch_case(moe, deduplicated) for moe in (b, d, e) for deduplicated in (False, True)]


def visited(moe: MoE) -> float:
    """Places on ranks that tokens take if each visits every rank on which it has an expert, routed evenly:
    T R (1 - C(E - E/R, K) / C(E, K))."""
    local, missed = moe.num_experts // NUM_RANKS, 1.0
    for choice in range(moe.top_k):
        missed *= (moe.num_experts - local - choice) / (moe.num_experts - choice)
    return moe.num_tokens * NUM_RANKS * (1 - missed)


def dispatch_work(moe: MoE, deduplicated: bool) -> tuple[Work, ...]:
    """Of P places, M or what `visited` says: read and written by send, by receive and by offer, and read by collect,
    which writes T tokens; 2 bytes a number."""
    places = 2 * (visited(moe) if deduplicated else moe.num_rows) * moe.d_model
    return (Work("send", 0, 2 * places), Work("receive", 0, 2 * places), Work("offer", 0, 2 * places),
            Work("collect", 0, places + 2 * moe.num_tokens * moe.d_model))


def dispatch_case(moe: MoE, deduplicated: bool) -> Case:
    """Tokens go to their experts' ranks and come back as they are: a token is summed once for each of its places."""
    def arguments(device: torch.device, num_tokens: int | None) -> Arguments:
        num_tokens = (num_tokens or moe.num_tokens) // NUM_RANKS
        choices = min(moe.top_k, moe.num_experts // NUM_RANKS)
        layout = Layout(NUM_RANKS, moe.num_experts, num_tokens, choices, 2 * moe.d_model, deduplicated)
        memories = [torch.zeros(layout.num_bytes, dtype=torch.uint8, device=device) for _ in range(NUM_RANKS)]
        pointers_R = torch.tensor([memory.data_ptr() for memory in memories], device=device)
        peers = [Peers(memory, pointers_R, rank, layout) for rank, memory in enumerate(memories)]
        x_RTD = [torch.randn(num_tokens, moe.d_model, device=device, dtype=torch.bfloat16) for _ in peers]
        return peers, x_RTD, [_routing(moe, num_tokens, device) for _ in peers]

    return Case("dispatch", f"{moe} R={NUM_RANKS}{' deduplicated' if deduplicated else ''}", arguments, round_trip,
                dispatch_work(moe, deduplicated), reference=_places_of_tokens)


def _routing(moe: MoE, num_tokens: int, device: torch.device) -> Routing:
    """Every token to top_k different experts at random, of equal weight."""
    scores_TE = torch.rand(num_tokens, moe.num_experts, device=device)
    order_M, place_M, counts_E = sort_by_expert(scores_TE.topk(moe.top_k).indices.flatten(), moe.num_experts)
    gate_M = torch.ones(len(order_M), device=device)
    return Routing(order_M // moe.top_k, gate_M, counts_E, rows_of_choices(place_M, moe.top_k))


def round_trip(peers: list[Peers], x_RTD: list[Tensor], routing_R: list[Routing]) -> tuple[Tensor, ...]:
    """One rank after another in each step, as all of a step can run by themselves."""
    layout = peers[0].layout
    for peer, routing in zip(peers, routing_R, strict=True):
        symmetric.announce(peer, TURN, routing.counts_E)
    places_R = [symmetric.place(peer, TURN, routing.counts_E, routing.token_M, layout.num_tokens, routing.rows)
                for peer, routing in zip(peers, routing_R, strict=True)]
    for peer, x_TD, places, routing in zip(peers, x_RTD, places_R, routing_R, strict=True):
        symmetric.send(peer, TURN + 1, x_TD, places, routing.gate_M)
    received = []
    for peer, places in zip(peers, places_R, strict=True):
        x_VD = symmetric.receive(peer, TURN + 1, places.counts_L, None, layout.num_places, x_RTD[0].dtype)
        received.append((x_VD, symmetric.received_rows(peer, TURN + 1)[2]))
    for peer, places, (x_VD, arrived_V) in zip(peers, places_R, received, strict=True):
        symmetric.offer(peer, TURN + 2, x_VD, places.counts_L, arrived_V)
    size = x_RTD[0].shape
    return tuple(symmetric.collect(peer, TURN + 2, places, *size, x_RTD[0].dtype)[0]
                 for peer, places in zip(peers, places_R, strict=True))


def _places_of_tokens(peers: list[Peers], x_RTD: list[Tensor], routing_R: list[Routing]) -> tuple[Tensor, ...]:
    layout = peers[0].layout
    local, results = layout.num_experts // layout.num_ranks, []
    for x_TD, routing in zip(x_RTD, routing_R, strict=True):
        expert_M = torch.arange(layout.num_experts, device=x_TD.device).repeat_interleave(routing.counts_E)
        visits_TR = torch.zeros(len(x_TD), layout.num_ranks, dtype=torch.float64, device=x_TD.device)
        visits_TR.index_put_((routing.token_M, expert_M // local), visits_TR.new_ones(()), accumulate=True)
        times_T = (visits_TR > 0).sum(1) if layout.deduplicated else visits_TR.sum(1)
        results.append(x_TD.double() * times_T[:, None])
    return tuple(results)
