"""The dispatch over ranks' memory in loopback: all ranks of a group are buffers of one GPU.

What crosses a link between GPUs crosses the GPU's own memory instead, so that the copy bandwidth is the ceiling.
R ranks, T tokens of all of them, D model width, E experts, K choices per token, M = T K rows.
"""

import torch
from torch import Tensor

from framework.bench.kernels.case import Arguments, Case, Work
from framework.bench.kernels.moe_cases import SHAPES, MoE
from kernels.moe import symmetric
from kernels.moe.peers import Layout, Peers
from kernels.moe.sort import sort_by_expert

NUM_RANKS = 4
TURN = 3
"""The first of a round trip. All round trips take the same ones: in a single process nobody is ever waited for."""


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
        x_RTD, expert_RM = [], []
        for _ in peers:
            x_RTD.append(torch.randn(num_tokens, moe.d_model, device=device, dtype=torch.bfloat16))
            scores_TE = torch.rand(num_tokens, moe.num_experts, device=device)
            expert_RM.append(scores_TE.topk(moe.top_k).indices.flatten())
        return peers, x_RTD, expert_RM

    return Case("dispatch", f"{moe} R={NUM_RANKS}{' deduplicated' if deduplicated else ''}", arguments, round_trip,
                dispatch_work(moe, deduplicated), reference=_places_of_tokens)


def round_trip(peers: list[Peers], x_RTD: list[Tensor], expert_RM: list[Tensor]) -> tuple[Tensor, ...]:
    """One rank after another in each step, as all of a step can run by themselves."""
    layout = peers[0].layout
    top_k = len(expert_RM[0]) // len(x_RTD[0])
    sorted_R = [sort_by_expert(expert_M, layout.num_experts) for expert_M in expert_RM]
    for peer, rows in zip(peers, sorted_R, strict=True):
        symmetric.announce(peer, TURN, rows.counts_E)
    places_R = [symmetric.place(peer, TURN, rows.counts_E, rows.order_M // top_k, layout.num_tokens)
                for peer, rows in zip(peers, sorted_R, strict=True)]
    for peer, x_TD, places, rows in zip(peers, x_RTD, places_R, sorted_R, strict=True):
        symmetric.send(peer, TURN + 1, x_TD, places, torch.ones_like(rows.order_M, dtype=torch.float32))
    received = []
    for peer, places in zip(peers, places_R, strict=True):
        x_VD = symmetric.receive(peer, TURN + 1, places.counts_L, None, layout.num_places, x_RTD[0].dtype)
        received.append((x_VD, symmetric.received_rows(peer, TURN + 1)[2]))
    for peer, places, (x_VD, arrived_V) in zip(peers, places_R, received, strict=True):
        symmetric.offer(peer, TURN + 2, x_VD, places.counts_L, arrived_V)
    size = x_RTD[0].shape
    return tuple(symmetric.collect(peer, TURN + 2, places, *size, x_RTD[0].dtype)[0]
                 for peer, places in zip(peers, places_R, strict=True))


def _places_of_tokens(peers: list[Peers], x_RTD: list[Tensor], expert_RM: list[Tensor]) -> tuple[Tensor, ...]:
    layout = peers[0].layout
    local, results = layout.num_experts // layout.num_ranks, []
    for x_TD, expert_M in zip(x_RTD, expert_RM, strict=True):
        owner_TK = expert_M.view(len(x_TD), -1) // local
        visits_TR = torch.zeros(len(x_TD), layout.num_ranks, dtype=torch.float64, device=x_TD.device)
        visits_TR.scatter_add_(1, owner_TK, torch.ones_like(owner_TK, dtype=torch.float64))
        times_T = (visits_TR > 0).sum(1) if layout.deduplicated else visits_TR.sum(1)
        results.append(x_TD.double() * times_T[:, None])
    return tuple(results)
