"""Dispatch over peers' memory: all ranks of a group in this one process, each with memory of its own, against float64.

T tokens of a rank, D model width, E experts, L experts of a rank, R ranks, M rows of a rank, V places for tokens.
"""

from itertools import pairwise
from threading import Thread

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels.moe import symmetric
from kernels.moe.peers import Layout, Peers
from tests.helpers.kernels import check_kernel


class Group:
    """Ranks that each have a list of (expert, token), sorted. Expert e makes x * (e + 1) of a token x."""

    def __init__(self, pairs_R, num_tokens_R, num_experts, width, dtype, deduplicated):
        self.pairs_R, self.num_tokens_R, self.dtype = pairs_R, num_tokens_R, dtype
        num_local = num_experts // len(pairs_R)
        choices = [sum(expert // num_local == owner and mine == token for expert, mine in pairs)
                   for pairs in pairs_R for owner in range(len(pairs_R)) for token in {token for _, token in pairs}]
        layout = Layout(len(pairs_R), num_experts, max(1, *num_tokens_R), max(1, *choices, 1), width * dtype.itemsize,
                        deduplicated)
        memory_R = [torch.full((layout.num_bytes,), 255, dtype=torch.uint8) for _ in pairs_R]
        for memory in memory_R:
            memory[: 4 * len(pairs_R)] = 0
        pointers_R = torch.tensor([memory.data_ptr() for memory in memory_R])
        self.peers_R = [Peers(memory, pointers_R, rank, layout) for rank, memory in enumerate(memory_R)]
        self.scale_E = 1.0 + torch.arange(num_experts)
        self.turn = 0

    def each(self, first, *arguments):
        """A function of one rank after another, as all can run by themselves: writes come before reads."""
        return [first(peers, self.turn, *mine) for peers, *mine in zip(self.peers_R, *arguments, strict=True)]

    def experts(self, x_VD, token_N, gate_N, counts_L, rank):
        """What this rank's experts make of their rows: weighted sums in the places of tokens, and before weighting."""
        num_rows = int(counts_L.sum())
        token_N, gate_N = token_N[:num_rows], gate_N[:num_rows]
        scale_N = self.scale_E.chunk(len(self.peers_R))[rank].repeat_interleave(counts_L)
        made_ND = x_VD[token_N].float() * scale_N[:, None]
        y_VD = torch.zeros(x_VD.shape).index_add(0, token_N, made_ND * gate_N[:, None])
        return y_VD.to(self.dtype), made_ND

    def forward(self, x_R, gate_R):
        """y, and what the backward needs of each rank."""
        counts_R = [torch.bincount(torch.tensor([e for e, _ in pairs], dtype=torch.int64), minlength=len(self.scale_E))
                    for pairs in self.pairs_R]
        token_R = [torch.tensor([t for _, t in pairs], dtype=torch.int64) for pairs in self.pairs_R]
        self.turn += 1
        self.each(symmetric.announce, counts_R)
        places_R = self.each(symmetric.place, counts_R, token_R, self.num_tokens_R)
        self.turn += 1
        self.each(symmetric.send, x_R, places_R, gate_R)
        received_R = []
        for rank, peers in enumerate(self.peers_R):
            counts_L = places_R[rank].counts_L
            num_places = peers.layout.num_places if peers.layout.deduplicated else int(counts_L.sum())
            x_VD = symmetric.receive(peers, self.turn, counts_L, None, num_places, self.dtype)
            received_R.append((x_VD, *symmetric.received_rows(peers, self.turn)))
        self.turn += 1
        for rank, (x_VD, token_N, gate_N, arrived_V) in enumerate(received_R):
            counts_L = places_R[rank].counts_L
            y_VD, _ = self.experts(x_VD, token_N, gate_N, counts_L, rank)
            symmetric.offer(self.peers_R[rank], self.turn, y_VD, counts_L, arrived_V)
        y_R = [symmetric.collect(peers, self.turn, places, len(x_TD), x_TD.shape[1], self.dtype)[0]
               for peers, places, x_TD in zip(self.peers_R, places_R, x_R, strict=True)]
        return y_R, (places_R, received_R)

    def backward(self, dy_R, places_R, received_R):
        self.turn += 1
        self.each(symmetric.send, dy_R, places_R)
        dy_VD_R = []
        for peers, places, (x_VD, _, _, arrived_V) in zip(self.peers_R, places_R, received_R, strict=True):
            dy_VD_R.append(
                symmetric.receive(peers, self.turn, places.counts_L, arrived_V, len(x_VD), self.dtype))
        self.turn += 1
        for rank, ((x_VD, token_N, gate_N, arrived_V), dy_VD) in enumerate(zip(received_R, dy_VD_R, strict=True)):
            counts_L = places_R[rank].counts_L
            dx_VD, made_ND = self.experts(dy_VD, token_N, gate_N, counts_L, rank)
            num_rows = len(made_ND)
            dgate_N = torch.full_like(gate_N, float("nan"))
            dgate_N[:num_rows] = (x_VD[token_N[:num_rows]].float() * made_ND).sum(1)
            symmetric.offer(self.peers_R[rank], self.turn, dx_VD, counts_L, arrived_V, dgate_N)
        return zip(*[symmetric.collect(peers, self.turn, places, len(dy_TD), dy_TD.shape[1], self.dtype, True)
                     for peers, places, dy_TD in zip(self.peers_R, places_R, dy_R, strict=True)], strict=True)


class Exchange(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, gate, group):
        ctx.group, ctx.rows = group, [len(pairs) for pairs in group.pairs_R]
        y_R, ctx.saved = group.forward(x.split(group.num_tokens_R), gate.split(ctx.rows))
        return torch.cat(y_R)

    @staticmethod
    def backward(ctx, dy):
        dx_R, dgate_R = ctx.group.backward(dy.split(ctx.group.num_tokens_R), *ctx.saved)
        return torch.cat(dx_R), torch.cat(dgate_R), None


def check(pairs_R, num_tokens_R, num_experts, width, dtype, deduplicated):
    generator = torch.Generator().manual_seed(0)
    num_rows = sum(map(len, pairs_R))
    x = torch.randn(sum(num_tokens_R), width, generator=generator, dtype=torch.float64)
    gate = torch.rand(num_rows, generator=generator, dtype=torch.float64)
    starts = [0, *torch.tensor(num_tokens_R).cumsum(0).tolist()]
    token = torch.tensor([start + token for start, pairs in zip(starts, pairs_R, strict=False) for _, token in pairs],
                         dtype=torch.int64)
    scale = torch.tensor([expert + 1.0 for pairs in pairs_R for expert, _ in pairs], dtype=torch.float64)

    def reference(x, gate):
        return torch.zeros_like(x).index_add(0, token, x[token] * (scale * gate)[:, None])

    group = Group(pairs_R, num_tokens_R, num_experts, width, dtype, deduplicated)
    check_kernel(lambda x, gate: Exchange.apply(x, gate, group), reference, [x, gate], dtype, precise=[1])


def routed(num_tokens_R, num_experts, top_k, seed=0):
    """Every token visits top_k experts."""
    generator = torch.Generator().manual_seed(seed)
    return [sorted((expert, token) for token in range(num_tokens)
                   for expert in torch.randperm(num_experts, generator=generator)[:top_k].tolist())
            for num_tokens in num_tokens_R]


CASES = {
    "random": (routed([6] * 4, 8, 3), [6] * 4, 8, 24),
    "a rank without tokens": (routed([3, 0, 2], 6, 2), [3, 0, 2], 6, 70),
    "all to one rank": ([[(expert, token) for expert in (2, 3) for token in range(35)]] * 2, [35, 35], 4, 5),
    "all experts": (routed([3, 4], 4, 4), [3, 4], 4, 37),
    "some tokens never": ([[(1, 2)], [(0, 1), (0, 3), (1, 3)]], [4, 5], 2, 8),
    "nothing at all": ([[], []], [0, 0], 2, 8),
    "one rank": (routed([7], 3, 2), [7], 3, 16),
}


@pytest.mark.parametrize("deduplicated", [False, True], ids=["plain", "deduplicated"])
@pytest.mark.parametrize("case", CASES)
def test_equals_float64(case, deduplicated):
    check(*CASES[case], torch.float32, deduplicated)


@pytest.mark.parametrize("deduplicated", [False, True], ids=["plain", "deduplicated"])
@pytest.mark.parametrize("case", ["a rank without tokens"])
def test_bfloat16_is_near(case, deduplicated):
    check(*CASES[case], torch.bfloat16, deduplicated)


@settings(max_examples=3, deadline=None)
@given(st.lists(st.integers(0, 5), min_size=1, max_size=3), st.integers(1, 3), st.integers(1, 20), st.booleans(),
       st.integers(0, 99), st.data())
def test_any_routing(num_tokens_R, num_local, width, deduplicated, seed, data):
    num_experts = num_local * len(num_tokens_R)
    pairs_R = routed(num_tokens_R, num_experts, data.draw(st.integers(1, num_experts)), seed)
    check(pairs_R, num_tokens_R, num_experts, width, torch.float32, deduplicated)


def test_rows_come_sorted_by_expert_with_their_gates():
    pairs_R = routed([4, 5], 4, 2)
    for deduplicated in (False, True):
        group = Group(pairs_R, [4, 5], 4, 3, torch.float32, deduplicated)
        x_R = [torch.randn(num, 3) for num in (4, 5)]
        gate_R = [torch.arange(float(len(pairs))) + 100 * rank for rank, pairs in enumerate(pairs_R)]
        _, (places_R, received_R) = group.forward(x_R, gate_R)
        for rank, (x_VD, token_N, gate_N, arrived_V) in enumerate(received_R):
            if deduplicated:  # five places for the tokens of each rank
                came = {5 * source + token for source, pairs in enumerate(pairs_R) for expert, token in pairs
                        if expert // 2 == rank}
                assert arrived_V.tolist() == [int(place in came) for place in range(10)]
            expected = sorted((expert, source, token, gate) for source, pairs in enumerate(pairs_R)
                              for (expert, token), gate in zip(pairs, gate_R[source].tolist(), strict=True)
                              if expert // 2 == rank)
            assert places_R[rank].counts_L.tolist() == [
                sum(expert == mine for expert, *_ in expected) for mine in (2 * rank, 2 * rank + 1)]
            for row, (_, source, token, gate) in enumerate(expected):
                assert torch.equal(x_VD[token_N[row]], x_R[source][token]) and gate_N[row] == gate


@pytest.mark.parametrize("deduplicated", [False, True])
def test_regions_lie_apart_and_aligned(deduplicated):
    layout = Layout(3, 6, 5, 2, 14, deduplicated)
    memory = torch.empty(layout.num_bytes, dtype=torch.uint8, device="meta")
    names = ("counts", "gates", "tokens") + ("copies", "arrived") * deduplicated
    spans = sorted((layout.offset(name, turn), len(layout.view(memory, name, turn, torch.uint8)))
                   for turn in (1, 2) for name in names)
    assert spans[0][0] >= 4 * 3 and all(start % 128 == 0 and size > 0 for start, size in spans)
    assert all(start + size <= after for (start, size), (after, _) in pairwise(spans))
    assert spans[-1][0] + spans[-1][1] <= layout.num_bytes
    assert layout.num_rows == 3 * 5 * 2 and layout.num_places == (15 if deduplicated else 30)


def test_a_rank_that_does_not_come_is_waited_for():
    """Nothing goes on with what is not there, until the wait is ended from outside: here by a late signal."""
    group = Group(routed([2, 2], 2, 1), [2, 2], 2, 4, torch.float32, False)
    counts_E, token_M = torch.tensor([1, 1]), torch.tensor([0, 1])
    mine, other = group.peers_R
    symmetric.announce(mine, 1, counts_E)
    waiting = Thread(target=symmetric.place, args=(mine, 1, counts_E, token_M, 2), daemon=True)
    waiting.start()
    waiting.join(0.5)
    assert waiting.is_alive()
    mine.layout.view(mine.memory, "counts", 1, torch.int32)[2:] = 0
    mine.memory[: 4 * 2].view(torch.int32)[other.rank] = 1
    waiting.join(30)
    assert not waiting.is_alive()


def test_no_turn_is_captured_in_a_graph(monkeypatch):
    """Its number would be that of the capture for ever."""
    peers = Group(routed([2, 2], 2, 1), [2, 2], 2, 4, torch.float32, False).peers_R[0]
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    with pytest.raises(RuntimeError, match="cannot be captured in a CUDA graph; allowed: "):
        symmetric.announce(peers, 1, torch.tensor([1, 1]))


def test_runs_on_meta_tensors():
    """As launches are looked at: with operators closed results have their shapes."""
    layout = Layout(4, 8, 10, 2, 12, True)
    peers = Peers(torch.empty(layout.num_bytes, dtype=torch.uint8, device="meta"),
                  torch.empty(4, dtype=torch.int64, device="meta"), 1, layout)
    counts_E, token_M, x_TD, gate_M = (torch.empty(shape, dtype=dtype, device="meta") for shape, dtype in [
        ((8,), torch.int64), ((21,), torch.int64), ((7, 3), torch.float32), ((21,), torch.float32)])
    symmetric.announce(peers, 1, counts_E)
    places = symmetric.place(peers, 1, counts_E, token_M, 7)
    symmetric.send(peers, 2, x_TD, places, gate_M)
    x_VD = symmetric.receive(peers, 2, places.counts_L, None, layout.num_places, torch.float32)
    token_N, gate_N, arrived_V = symmetric.received_rows(peers, 2)
    symmetric.offer(peers, 3, x_VD, places.counts_L, arrived_V, gate_N)
    y_TD, number_M = symmetric.collect(peers, 3, places, 7, 3, torch.float32, True)
    assert x_VD.shape == (40, 3) and len(token_N) == 80 and places.counts_L.shape == (2,)
    assert y_TD.shape == (7, 3) and number_M.shape == (21,)
