"""What dispatches send: each token once to a rank, and the fewer bytes that the formula says (kernels.md, B7).

Shapes: T tokens of a rank, K choices per token, E experts, M routed rows, D model width, R ranks.
"""

import itertools
import math
from dataclasses import dataclass

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from kernels.moe.rows import sum_rows
from parallel import AllToAllDispatcher, DeduplicatedDispatcher, Mesh, MeshSizes
from parallel.dispatch.deduplicated import number_copies

D_MODEL, NUM_RANKS, TOP_K = 4, 4, 8
DISPATCHERS = {"plain": AllToAllDispatcher, "deduplicated": DeduplicatedDispatcher}


@dataclass(frozen=True)
class Assignment:
    token_M: Tensor
    gate_M: Tensor
    counts_E: Tensor
    rows: None = None


def assign(expert_TK: Tensor, num_experts: int) -> Assignment:
    order_M = expert_TK.flatten().argsort(stable=True)
    counts_E = torch.bincount(expert_TK.flatten(), minlength=num_experts)
    return Assignment(order_M // expert_TK.shape[1], torch.ones(len(order_M)), counts_E)


def every_choice(num_experts: int) -> Tensor:
    """Each possible set of experts once: routing that is exactly uniform."""
    return torch.tensor(list(itertools.combinations(range(num_experts), TOP_K)))


def random_choices(num_tokens: int, num_experts: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(num_tokens, num_experts, generator=generator).argsort(1)[:, :TOP_K]


def send(kind: str, routing: str, num_experts: int, dtype: torch.dtype) -> tuple[int, int, Tensor]:
    """Bytes as the dispatcher counts them, rows that went through the collectives to other ranks, and the output."""
    rank, size = dist.get_rank(), dist.get_world_size()
    mesh = Mesh(MeshSizes(dp_shard=size, ep=size), "cpu")
    expert_TK = every_choice(num_experts) if routing == "every" else random_choices(1000, num_experts, rank)
    dispatcher = DISPATCHERS[kind](mesh.ep)
    x_TD = torch.ones(len(expert_TK), D_MODEL, dtype=dtype)
    arrived = 0

    def experts(x_VD: Tensor, assignment: Assignment) -> Tensor:
        nonlocal arrived
        arrived = len(x_VD)
        y_VD = torch.zeros_like(x_VD)
        return y_VD.index_add(0, assignment.token_M, assignment.gate_M.to(dtype)[:, None] * x_VD[assignment.token_M])

    y_TD = dispatcher(x_TD, assign(expert_TK, num_experts), experts)
    return dispatcher.bytes_sent, arrived, y_TD


def copies_RR(routing: str, num_experts: int, deduplicated: bool) -> Tensor:
    """Rows that each rank sends to each, counted token by token."""
    rows_RR = torch.zeros(NUM_RANKS, NUM_RANKS, dtype=torch.int64)
    for rank in range(NUM_RANKS):
        expert_TK = every_choice(num_experts) if routing == "every" else random_choices(1000, num_experts, rank)
        owner_TK = expert_TK // (num_experts // NUM_RANKS)
        for other in range(NUM_RANKS):
            rows = (owner_TK == other).sum(1)
            rows_RR[rank, other] = (rows.clamp(max=1) if deduplicated else rows).sum()
    return rows_RR


def expected_rows(num_tokens: int, num_experts: int, deduplicated: bool) -> float:
    """Rows that a rank sends to others under uniform routing."""
    here = num_experts // NUM_RANKS
    visits = 1 - math.comb(num_experts - here, TOP_K) / math.comb(num_experts, TOP_K)
    return num_tokens * (NUM_RANKS - 1) * (visits if deduplicated else TOP_K / NUM_RANKS)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", DISPATCHERS)
def test_bytes_are_those_of_the_rows_that_leave_a_rank(ranks, kind, dtype):
    rows_RR = copies_RR("random", 16, kind == "deduplicated")
    results = ranks.run(NUM_RANKS, send, kind, "random", 16, dtype)
    for rank, (num_bytes, arrived, y_TD) in enumerate(results):
        assert arrived == rows_RR[:, rank].sum()
        leaving = rows_RR[rank].sum() + rows_RR[:, rank].sum() - 2 * rows_RR[rank, rank]
        assert num_bytes == leaving * D_MODEL * dtype.itemsize
        assert torch.equal(y_TD, torch.full_like(y_TD, TOP_K))


def test_top_8_over_4_ranks_sends_exactly_the_bytes_of_the_formula(ranks):
    """All C(16, 8) = 12870 sets of experts, each once on every rank."""
    num_bytes = {}
    for kind in DISPATCHERS:
        rows = expected_rows(math.comb(16, TOP_K), 16, kind == "deduplicated")
        for got, *_ in ranks.run(NUM_RANKS, send, kind, "every", 16, torch.float32):
            assert got == 2 * rows * D_MODEL * 4
            num_bytes[kind] = got
    assert num_bytes["deduplicated"] / num_bytes["plain"] == (1 - 495 / 12870) / 2


def test_random_routing_is_near_the_formula(ranks):
    """64 experts; the number of ranks that a token visits has a standard deviation below one."""
    results = ranks.run(NUM_RANKS, send, "deduplicated", "random", 64, torch.float32)
    rows = sum(num_bytes for num_bytes, *_ in results) / (2 * D_MODEL * 4)
    assert abs(rows - expected_rows(4000, 64, True)) < 4 * math.sqrt(4000)
    assert rows < 0.5 * expected_rows(4000, 64, False)


def test_copies_are_numbered_by_rank_and_then_by_token():
    """Rank 0 gets token 2 twice and token 0; rank 1 nothing; rank 2 tokens 3 and 0."""
    copy_M, copies_R = number_copies(torch.tensor([2, 0, 2, 3, 0]), torch.tensor([3, 0, 2]), 4)
    assert copy_M.tolist() == [1, 0, 1, 3, 2] and copies_R.tolist() == [2, 0, 2]
    copy_M, copies_R = number_copies(torch.empty(0, dtype=torch.int64), torch.zeros(3, dtype=torch.int64), 0)
    assert copy_M.tolist() == [] and copies_R.tolist() == [0, 0, 0]


class Accumulators(TorchDispatchMode):
    """The dtypes of tensors that rows are added to."""

    def __init__(self):
        super().__init__()
        self.dtypes = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function is torch.ops.aten.index_add.default:
            self.dtypes.append(args[0].dtype)
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("dtype, sums", [
    (torch.bfloat16, torch.float32), (torch.float32, torch.float32), (torch.float64, torch.float64),
], ids=str)
def test_what_ranks_return_is_summed_in_float32_at_least(dtype, sums):
    """By dtype, not by value: a CPU's own sum of bfloat16 rows would be as precise, a GPU's would not."""
    y_UD = torch.tensor([[1.0], [1 / 256], [5.0], [1 / 256]], dtype=dtype)
    with Accumulators() as seen:
        y_TD = sum_rows(y_UD, torch.tensor([1, 1, 0, 1]), 2)
    assert seen.dtypes == [sums]
    assert y_TD.dtype == dtype and y_TD.tolist() == [[5.0], [1 + 1 / 128]]
