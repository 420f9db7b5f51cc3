"""Ranks that hold parts of a forward route, balance and count as one rank does; each rank is a thread here.

B batch, S sequence, D model width, E experts.
"""

import copy
import itertools
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from framework.model.context import Context
from framework.model.moe import MixtureOfExperts, Parts, TokenParts
from framework.recipe.schema import MoE

BATCH_SIZE, SEQ_LEN, D_MODEL, NUM_EXPERTS = 4, 12, 8, 6
LOSSES = dict(load_balance_weight=0.5, z_loss_weight=0.1)
OPTIONS = {
    "dropless": LOSSES,
    "capacity": LOSSES | dict(capacity_factor=0.7),
    "topk_softmax": LOSSES | dict(router="topk_softmax", capacity_factor=1.0),
    "sigmoid": LOSSES | dict(router="sigmoid", selection_bias_rate=0.1, gate_scale=2.0, capacity_factor=0.8),
    "expert_choice": LOSSES | dict(router="expert_choice"),
    "expert_choice_by_position": LOSSES | dict(router="expert_choice", choice_group="position"),
    "over_forward": LOSSES | dict(load_balance_over="forward"),
    "shared": LOSSES | dict(num_shared_experts=1, shared_expert_router=True, output_norm=True),
}


class ThreadParts(Parts):
    """Parts on threads, which meet at a barrier."""

    def __init__(self, slots, barrier, rank):
        self.slots, self.barrier, self.rank, self.count = slots, barrier, rank, len(slots)

    def sum(self, x):
        return sum(self._meet(x))

    def gather(self, x, dim):
        return torch.cat(self._meet(x), dim)

    def own(self, whole, dim):
        return whole.chunk(self.count, dim)[self.rank]

    def _meet(self, x):
        self.slots[self.rank] = x.detach()
        self.barrier.wait(timeout=30)
        everything = list(self.slots)
        self.barrier.wait(timeout=30)
        return everything

    @classmethod
    def of(cls, count):
        slots, barrier = [None] * count, threading.Barrier(count)
        return [cls(slots, barrier, rank) for rank in range(count)]


def block(**fields):
    settings = MoE(**{"num_experts": NUM_EXPERTS, "top_k": 2, "d_expert": 4, **fields})
    moe = MixtureOfExperts(D_MODEL, settings, 1e-5)
    torch.manual_seed(0)
    for parameter in moe.parameters():
        torch.nn.init.normal_(parameter)
    if settings.selection_bias_rate:
        moe.router.selection_bias_E.normal_()
    return moe.double()


def run(moe, x_BSD, weight_BSD):
    """The output, the statistics, and gradients of the input and the parameters."""
    x_BSD = x_BSD.clone().requires_grad_()
    y_BSD = moe(x_BSD, Context(num_sequences=BATCH_SIZE))
    (y_BSD * weight_BSD).sum().backward()
    gradients = {name: parameter.grad for name, parameter in moe.named_parameters()}
    return y_BSD.detach(), x_BSD.grad, moe.take_statistics(), gradients


def run_in_parts(moe, x_BSD, weight_BSD, num_batch, num_sequence, without=()):
    """The same on num_batch * num_sequence threads; `without` names parts whose ranks tell each other nothing."""
    grid = list(itertools.product(range(num_batch), range(num_sequence)))
    sequence, batch = [ThreadParts.of(num_sequence) for _ in range(num_batch)], [
        ThreadParts.of(num_batch) for _ in range(num_sequence)]
    forward = ThreadParts.of(len(grid))
    arguments = []
    for rank, (b, s) in enumerate(grid):
        mine = copy.deepcopy(moe)
        parts = dict(sequence=sequence[b][s], batch=batch[s][b], forward=forward[rank])
        for name in without:
            del parts[name]
        mine.token_parts = TokenParts(**parts)
        arguments.append((mine, *(x.chunk(num_batch)[b].chunk(num_sequence, 1)[s] for x in (x_BSD, weight_BSD))))
    with ThreadPoolExecutor(len(grid)) as threads:
        results = list(threads.map(lambda each: run(*each), arguments))

    def whole(tensors):
        rows = [torch.cat(tensors[b * num_sequence:(b + 1) * num_sequence], 1) for b in range(num_batch)]
        return torch.cat(rows)

    def summed(dictionaries):
        return {name: sum(each[name] for each in dictionaries) for name in dictionaries[0]}

    outputs, inputs, statistics, gradients = zip(*results, strict=True)
    return whole(outputs), whole(inputs), summed(statistics), summed(gradients)


def data():
    generator = torch.Generator().manual_seed(1)
    return torch.randn(2, BATCH_SIZE, SEQ_LEN, D_MODEL, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("grid", [(1, 2), (1, 4), (2, 1), (2, 2), (4, 3)], ids=str)
@pytest.mark.parametrize("option", OPTIONS)
def test_any_parts_of_a_forward_equal_the_whole(option, grid):
    moe = block(**OPTIONS[option])
    x_BSD, weight_BSD = data()
    got = run_in_parts(moe, x_BSD, weight_BSD, *grid)
    expected = run(moe, x_BSD, weight_BSD)
    for mine, reference in zip(got, expected, strict=True):
        torch.testing.assert_close(mine, reference, rtol=1e-11, atol=1e-12)
    if OPTIONS[option].get("capacity_factor"):
        assert expected[2]["dropped"] > 0


@pytest.mark.parametrize("option, without, grid", [
    ("dropless", "sequence", (1, 2)), ("capacity", "sequence", (1, 2)), ("expert_choice", "sequence", (1, 2)),
    ("expert_choice_by_position", "batch", (2, 1)), ("over_forward", "forward", (2, 1)),
    ("over_forward", "forward", (1, 2)),
])
def test_ranks_that_tell_each_other_nothing_are_found_out(option, without, grid):
    """Wrong on purpose: the comparison above must see it."""
    moe = block(**OPTIONS[option])
    x_BSD, weight_BSD = data()
    _, _, _, got = run_in_parts(moe, x_BSD, weight_BSD, *grid, without=[without])
    _, _, _, expected = run(moe, x_BSD, weight_BSD)
    router, reference = got["router.weight"], expected["router.weight"]
    assert (router - reference).norm() > 1e-6 * reference.norm()


def test_experts_take_other_numbers_of_tokens_from_each_part():
    moe = block(router="expert_choice", capacity_factor=1.0)
    x_BSD, weight_BSD = data()
    x_BSD[:, : SEQ_LEN // 2] *= 10  # the sharper the scores, the sooner a token is chosen
    parts = ThreadParts.of(2)
    counts = []

    def count(rank):
        mine = copy.deepcopy(moe)
        mine.token_parts = TokenParts(sequence=parts[rank])
        return mine._route(mine.router(x_BSD.chunk(2, 1)[rank])).assignment.counts_E

    with ThreadPoolExecutor(2) as threads:
        counts = list(threads.map(count, range(2)))
    assert sum(counts).tolist() == [BATCH_SIZE * 4] * NUM_EXPERTS
    assert (counts[0] > counts[1]).any() and not torch.equal(*counts)
