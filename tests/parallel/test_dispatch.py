"""Both dispatches are equal to experts on one device, whichever ranks and experts have no rows."""

from dataclasses import dataclass

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from parallel import AllToAllDispatcher, DeduplicatedDispatcher, Mesh, MeshSizes
from parallel.dispatch.all_to_all import combine

D, TOKENS = 6, 10


@dataclass(frozen=True)
class Assignment:
    token_M: Tensor
    gate_M: Tensor
    counts_E: Tensor
    rows: None = None


def experts_of(weight_EDD: Tensor):
    """A loop over the experts, as `framework.model.moe` promises of its own: y += gate * tanh(x W_e)."""

    def experts(x_TD: Tensor, assignment: Assignment) -> Tensor:
        y_TD = x_TD * 0
        start = 0
        for weight, count in zip(weight_EDD, assignment.counts_E.tolist(), strict=True):
            rows = slice(start, start + count)
            out = torch.tanh(x_TD[assignment.token_M[rows]] @ weight.to(x_TD.dtype))
            y_TD = y_TD.index_add(0, assignment.token_M[rows], out * assignment.gate_M[rows, None].to(out.dtype))
            start += count
        return y_TD

    return experts


def make_assignment(expert_TK: Tensor, gate_TK: Tensor, num_experts: int) -> Assignment:
    order = expert_TK.flatten().argsort(stable=True)
    counts = torch.bincount(expert_TK.flatten(), minlength=num_experts)
    return Assignment(order // expert_TK.shape[1], gate_TK.flatten()[order], counts)


def choices(case: str, rank: int, num_experts: int) -> Tensor:
    """Which experts each token of a rank visits."""
    generator = torch.Generator().manual_seed(rank)
    if case == "one rank has no tokens" and rank == 1:
        return torch.empty(0, 2, dtype=torch.int64)
    if case == "nobody has tokens":
        return torch.empty(0, 2, dtype=torch.int64)
    if case == "all to the last expert's rank":
        return torch.tensor([[num_experts - 1, num_experts - 2]] * TOKENS)
    if case == "experts choose":  # some tokens never, some twice by the same expert's neighbour
        return torch.stack([torch.zeros(TOKENS, dtype=torch.int64), torch.ones(TOKENS, dtype=torch.int64)], 1)
    top_k = num_experts - 1 if case == "nearly all experts" else 2
    return torch.stack([torch.randperm(num_experts, generator=generator)[:top_k] for _ in range(TOKENS)])


DISPATCHERS = {"plain": AllToAllDispatcher, "deduplicated": DeduplicatedDispatcher}
CASES = ["random", "nearly all experts", "one rank has no tokens", "nobody has tokens", "all to the last expert's rank",
         "experts choose"]


def make(case: str, rank: int, num_experts: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(100 + rank)
    expert_TK = choices(case, rank, num_experts)
    x_TD = torch.randn(len(expert_TK), D, generator=generator, dtype=torch.float64)
    gate_TK = torch.rand(expert_TK.shape, generator=generator, dtype=torch.float64)
    gradient_TD = torch.randn(x_TD.shape, generator=generator, dtype=torch.float64)
    return expert_TK, x_TD, gate_TK, gradient_TD


def dispatch(kind: str, case: str, num_experts: int, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """Outputs and gradients on this rank: y, dx, dgate, dweight (of its own experts)."""
    rank, size = dist.get_rank(), dist.get_world_size()
    mesh = Mesh(MeshSizes(dp_shard=size, ep=size), "cpu")
    expert_TK, x_TD, gate_TK, gradient_TD = make(case, rank, num_experts)
    local = num_experts // size
    weight = nn.Parameter(all_weights(num_experts)[rank * local:(rank + 1) * local])
    x_TD = x_TD.to(dtype).requires_grad_()
    gate_TK.requires_grad_()
    assignment = make_assignment(expert_TK, gate_TK, num_experts)
    y_TD = DISPATCHERS[kind](mesh.ep)(x_TD, assignment, experts_of(weight))
    y_TD.backward(gradient_TD.to(dtype))
    return y_TD.detach(), x_TD.grad, gate_TK.grad, weight.grad


def all_weights(num_experts: int) -> Tensor:
    return torch.randn(num_experts, D, D, generator=torch.Generator().manual_seed(9), dtype=torch.float64)


def one_rank(case: str, num_experts: int, size: int) -> list[tuple[Tensor, ...]]:
    """The same for every rank, and the sum of the weights' gradients, on one device."""
    weight = all_weights(num_experts).requires_grad_()
    results = []
    for rank in range(size):
        expert_TK, x_TD, gate_TK, gradient_TD = make(case, rank, num_experts)
        x_TD.requires_grad_(), gate_TK.requires_grad_()
        y_TD = experts_of(weight)(x_TD, make_assignment(expert_TK, gate_TK, num_experts))
        y_TD.backward(gradient_TD)
        results.append((y_TD.detach(), x_TD.grad, gate_TK.grad))
    parts = weight.grad.chunk(size)
    return [(*result, part) for result, part in zip(results, parts, strict=True)]


@pytest.mark.parametrize("kind", DISPATCHERS)
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("size, num_experts", [(2, 6), (4, 8), (3, 3), (1, 4)])
def test_dispatch_equals_one_rank(ranks, kind, case, size, num_experts):
    got = ranks.run(size, dispatch, kind, case, num_experts, torch.float64)
    for rank, (mine, reference) in enumerate(zip(got, one_rank(case, num_experts, size), strict=True)):
        for name, a, b in zip(("y", "dx", "dgate", "dweight"), mine, reference, strict=True):
            assert a is not None, f"rank {rank}: {name} has no gradient"
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12, msg=lambda m, r=rank, n=name: f"rank {r} {n}: {m}")


@pytest.mark.parametrize("kind", DISPATCHERS)
def test_bfloat16_keeps_its_dtype_and_is_near(ranks, kind):
    reference = one_rank("random", 4, 2)
    for mine, exact in zip(ranks.run(2, dispatch, kind, "random", 4, torch.bfloat16), reference, strict=True):
        assert mine[0].dtype == mine[1].dtype == torch.bfloat16
        for a, b in zip(mine[:3], exact[:3], strict=True):
            assert (a.double() - b).norm() < 0.02 * b.norm()


def test_gates_weight_and_sum_in_float32():
    """bfloat16 has nothing between 1 and 1 + 1/128, and near 768 only multiples of four."""
    rows = 768
    gate_M = torch.full((rows,), 1 + 1 / 256)
    assignment = Assignment(torch.zeros(rows, dtype=torch.int64), gate_M, torch.tensor([rows]))
    y_TD = combine(torch.ones(rows, D, dtype=torch.bfloat16), assignment, 1)
    assert y_TD.dtype == torch.bfloat16
    assert y_TD.tolist() == [[772.0] * D]
