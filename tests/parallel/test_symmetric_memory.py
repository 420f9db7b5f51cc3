"""Dispatch through symmetric memory, by real processes whose memory is files that all map: as one process does it all.

Shapes: T tokens of a rank, D model width, E experts, F width of an expert, K experts of a token.
"""

from dataclasses import dataclass

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from kernels import expert_ffn
from kernels.backend import use_backend
from kernels.moe.rows import TokenRows
from parallel import AllToAllDispatcher, DeduplicatedDispatcher, Mesh, MeshSizes
from parallel.dispatch.symmetric_memory import SymmetricMemory, SymmetricMemoryDispatcher
from tests.helpers.kernels import poisoned
from tests.helpers.shared_memory import SharedMemory

D, F, TOP_K, NUM_RANKS, NUM_EXPERTS = 24, 8, 3, 4, 8
CASES = ["random", "one rank has no tokens", "all to the last rank", "more tokens", "nobody has tokens", "random again"]
SOME = CASES[:3]


@dataclass(frozen=True)
class Assignment:
    token_M: Tensor
    gate_M: Tensor
    counts_E: Tensor
    rows: TokenRows | None = None


def choices(case: str, rank: int) -> Tensor:
    """The experts of each of a rank's tokens."""
    generator = torch.Generator().manual_seed(rank + 10 * CASES.index(case))
    num_tokens = {"more tokens": 13, "nobody has tokens": 0}.get(case, 10 - rank)
    if case == "one rank has no tokens" and rank == 1:
        num_tokens = 0
    if case == "all to the last rank":
        return torch.tensor([[NUM_EXPERTS - 1, NUM_EXPERTS - 2]]).expand(num_tokens, 2)
    return torch.rand(num_tokens, NUM_EXPERTS, generator=generator).argsort(1)[:, :TOP_K]


def inputs(case: str, rank: int) -> list[Tensor]:
    """x_TD, gate_TK and the gradient of y_TD: as numbers that bfloat16 has."""
    generator = torch.Generator().manual_seed(rank)
    index_TK = choices(case, rank)
    shapes = [(len(index_TK), D), index_TK.shape, (len(index_TK), D)]
    return [torch.randn(shape, generator=generator).bfloat16().double() for shape in shapes]


def weights() -> list[Tensor]:
    """gate_EFD, up_EFD, down_EDF."""
    generator = torch.Generator().manual_seed(9)
    shapes = [(NUM_EXPERTS, F, D), (NUM_EXPERTS, F, D), (NUM_EXPERTS, D, F)]
    return [(torch.randn(shape, generator=generator) / shape[2] ** 0.5).bfloat16().double() for shape in shapes]


def step(case: str, rank: int, dispatch, weights_E: list[Tensor], dtype: torch.dtype) -> list[Tensor]:
    """y, and gradients of x, the gates and the matrices."""
    x_TD, gate_TK, dy_TD = inputs(case, rank)
    index_TK = choices(case, rank)
    leaves = [x_TD.to(dtype), gate_TK.to(torch.promote_types(dtype, torch.float32)),
              *(weight.to(dtype) for weight in weights_E)]
    x_TD, gate_TK, *weights_E = (leaf.requires_grad_() for leaf in leaves)
    order_M = index_TK.flatten().argsort(stable=True)
    assignment = Assignment(order_M // max(1, index_TK.shape[1]), gate_TK.flatten()[order_M],
                            torch.bincount(index_TK.flatten(), minlength=NUM_EXPERTS))

    def experts(x_TD: Tensor, rows: Assignment) -> Tensor:
        return expert_ffn(x_TD, rows.token_M, rows.gate_M, rows.counts_E, *weights_E, "swiglu", rows.rows)

    y_TD = dispatch(x_TD, assignment, experts)
    y_TD.backward(dy_TD.to(dtype))
    return [y_TD.detach(), *(leaf.grad for leaf in leaves)]


def on_ranks(cases: list[str], deduplicate: bool, dtype: torch.dtype, backend: str) -> list[tuple[list, list]]:
    """For each case what `step` gives by symmetric memory and by all-to-all, one case after another."""
    rank = dist.get_rank()
    mesh = Mesh(MeshSizes(dp_shard=NUM_RANKS, ep=NUM_RANKS), "cpu").ep
    through_memory = SymmetricMemoryDispatcher(SymmetricMemory(mesh, SharedMemory()), TOP_K, deduplicate)
    by_exchange = (DeduplicatedDispatcher if deduplicate else AllToAllDispatcher)(mesh)
    mine = [weight.chunk(NUM_RANKS)[rank] for weight in weights()]
    results = []
    with use_backend(backend), poisoned():
        for case in cases:
            results.append((step(case, rank, through_memory, mine, dtype), step(case, rank, by_exchange, mine, dtype)))
            assert int(through_memory.bytes_sent) == by_exchange.bytes_sent
    return results


def on_one_rank(case: str) -> list[list[Tensor]]:
    """The same for every rank, in float64, the gradients of the matrices summed over all and cut into ranks' parts."""
    results = [step(case, rank, lambda x, rows, experts: experts(x, rows), weights(), torch.float64)
               for rank in range(NUM_RANKS)]
    sums = [sum(gradients).chunk(NUM_RANKS) for gradients in zip(*(result[3:] for result in results), strict=True)]
    return [[*result[:3], *(parts[rank] for parts in sums)] for rank, result in enumerate(results)]


@pytest.mark.parametrize("cases, dtype, backend", [
    (CASES, torch.float32, "auto"), (SOME, torch.bfloat16, "auto"), (SOME[:1], torch.float32, "triton"),
], ids=["float32", "bfloat16", "experts in Triton"])
@pytest.mark.parametrize("deduplicate", [False, True], ids=["plain", "deduplicated"])
def test_processes_that_share_memory_equal_one_and_the_all_to_all(ranks, deduplicate, cases, dtype, backend):
    """Experts in Triton get tensors as long as there is room, and may not touch what lies after their rows."""
    got = ranks.run(NUM_RANKS, on_ranks, cases, deduplicate, dtype, backend)
    limit = {torch.float32: 1e-6, torch.bfloat16: 1e-2}[dtype]
    for place, case in enumerate(cases):
        for rank, expected in enumerate(on_one_rank(case)):
            for name, *values in zip("y dx dgate dgate_EFD dup_EFD ddown_EDF".split(), *got[rank][place], expected,
                                     strict=True):
                mine, other, exact = (value.double() for value in values)
                assert mine.isfinite().all()
                for difference in (mine - exact, mine - other):
                    assert difference.norm() <= limit * exact.norm(), f"{case}, rank {rank}: {name}"


def refused() -> None:
    mesh = Mesh(MeshSizes(dp_shard=2, ep=2), "cpu").ep
    with pytest.raises(ValueError, match="tokens are torch.float64; allowed: float32, bfloat16"):
        SymmetricMemory(mesh, SharedMemory()).channel(torch.zeros(1, D, dtype=torch.float64), 2, 1, False)
    with pytest.MonkeyPatch.context() as patched, pytest.raises(ValueError, match="2 ranks of ep are on 2 machines"):
        patched.setattr("socket.gethostname", lambda: f"machine{dist.get_rank()}")
        SymmetricMemory(mesh, SharedMemory())


def test_float64_and_several_machines_are_refused(ranks):
    ranks.run(2, refused)
