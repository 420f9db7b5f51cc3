"""The differentiable collectives against what they mean, computed from every rank's input in one place."""

import warnings

import pytest
import torch
import torch.distributed as dist

from parallel.collectives import all_gather, all_max, all_reduce, all_sum, all_to_all, reduce_scatter, swap_sharded_dim

NUM_RANKS = 3


def inputs(*shape: int, seed: int = 0) -> list[torch.Tensor]:
    """One float64 tensor per rank, the same list on every rank."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(NUM_RANKS)]


def run(name: str, all_inputs: list, all_gradients: list, args: tuple) -> tuple[torch.Tensor, torch.Tensor]:
    """The output and the input's gradient on this rank."""
    rank = dist.get_rank()
    x = all_inputs[rank].requires_grad_()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        y = FUNCTIONS[name](x, *(a[rank] if isinstance(a, list) else a for a in args), dist.group.WORLD)
        y.backward(all_gradients[rank])
    return y.detach(), x.grad


FUNCTIONS = {"all_gather": all_gather, "reduce_scatter": reduce_scatter, "all_to_all": all_to_all,
             "swap": swap_sharded_dim, "all_reduce": all_reduce}


def check(ranks, name, all_inputs, all_gradients, args, reference) -> None:
    """reference: maps all ranks' inputs to all ranks' outputs on one device; autograd gives the expected gradients."""
    leaves = [x.clone().requires_grad_() for x in all_inputs]
    outputs = reference(leaves)
    expected = torch.autograd.grad(outputs, leaves, all_gradients)
    for rank, (y, gradient) in enumerate(ranks.run(NUM_RANKS, run, name, all_inputs, all_gradients, args)):
        torch.testing.assert_close(y, outputs[rank].detach(), rtol=1e-14, atol=1e-14)
        torch.testing.assert_close(gradient, expected[rank], rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("dim", [0, 1])
def test_all_gather(ranks, dim):
    shape = (2, 12) if dim else (6, 4)
    check(ranks, "all_gather", inputs(2, 4), inputs(*shape, seed=1), (dim,),
          lambda xs: [torch.cat(xs, dim)] * NUM_RANKS)


@pytest.mark.parametrize("dim", [0, 1])
def test_reduce_scatter(ranks, dim):
    shape = (6, 2) if dim else (2, 6)
    check(ranks, "reduce_scatter", inputs(6, 6), inputs(*shape, seed=1), (dim,),
          lambda xs: list(sum(xs).chunk(NUM_RANKS, dim)))


def test_all_reduce(ranks):
    check(ranks, "all_reduce", inputs(2, 4), inputs(2, 4, seed=1), (), lambda xs: [sum(xs)] * NUM_RANKS)


@pytest.mark.parametrize("counts", [
    [[1, 2, 3], [0, 4, 1], [2, 2, 2]], [[0, 0, 0], [3, 0, 2], [0, 0, 0]], [[0, 5, 0], [0, 0, 0], [0, 1, 0]],
    [[0] * 3] * 3,
])
def test_all_to_all_of_uneven_and_no_rows(ranks, counts):
    """counts[r][s]: rows that rank r sends to rank s."""
    generator = torch.Generator().manual_seed(0)
    received = [list(column) for column in zip(*counts, strict=True)]
    xs = [torch.randn(sum(row), 4, generator=generator, dtype=torch.float64) for row in counts]
    gradients = [torch.randn(sum(column), 4, generator=generator, dtype=torch.float64) for column in received]

    def reference(xs):
        parts = [x.split(row) for x, row in zip(xs, counts, strict=True)]
        return [torch.cat([parts[r][s] for r in range(NUM_RANKS)]) for s in range(NUM_RANKS)]

    check(ranks, "all_to_all", xs, gradients, (received, counts), reference)


def test_swapping_the_sharded_dim(ranks):
    """[B, S/R, H, P] to [B, S, H/R, P]."""

    def reference(xs):
        return list(torch.cat(xs, 1).chunk(NUM_RANKS, 2))

    check(ranks, "swap", inputs(2, 4, 6, 5), inputs(2, 12, 2, 5, seed=1), (2, 1), reference)


def statistics() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    x = torch.full((2,), dist.get_rank() + 1.0, requires_grad=True)
    return all_sum(x, dist.group.WORLD), all_max(x, dist.group.WORLD), x.detach()


def test_statistics_leave_their_input(ranks):
    for rank, (total, largest, x) in enumerate(ranks.run(NUM_RANKS, statistics)):
        assert total.tolist() == [6.0, 6.0] and not total.requires_grad
        assert largest.tolist() == [3.0, 3.0] and not largest.requires_grad
        assert x.tolist() == [rank + 1.0] * 2
