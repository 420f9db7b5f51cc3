"""Ranks that hold parts of a forward route, balance and count as one rank does; each rank is a thread here.

B batch, S sequence, D model width, E experts.
"""

import copy
import itertools
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from framework.model.moe import Parts, TokenParts
from tests.helpers.mixtures import BATCH_SIZE, NUM_EXPERTS, OPTIONS, SEQ_LEN, batch, block, run


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


def run_in_parts(moe, x_BSD, dy_BSD, num_batch, num_sequence, without=()):
    """What `run` gives, on num_batch * num_sequence threads; parts named in `without` tell each other nothing."""
    grid = list(itertools.product(range(num_batch), range(num_sequence)))
    rows = [ThreadParts.of(num_sequence) for _ in range(num_batch)]
    columns = [ThreadParts.of(num_batch) for _ in range(num_sequence)]
    forward = ThreadParts.of(len(grid))
    arguments = []
    for rank, (b, s) in enumerate(grid):
        mine = copy.deepcopy(moe)
        parts = dict(sequence=rows[b][s], batch=columns[s][b], forward=forward[rank])
        for name in without:
            del parts[name]
        mine.token_parts = TokenParts(**parts)
        arguments.append((mine, *(x.chunk(num_batch)[b].chunk(num_sequence, 1)[s] for x in (x_BSD, dy_BSD))))
    with ThreadPoolExecutor(len(grid)) as threads:
        results = list(threads.map(lambda each: run(*each), arguments))

    def whole(tensors):
        return torch.cat([torch.cat(tensors[b * num_sequence:][:num_sequence], 1) for b in range(num_batch)])

    def summed(dictionaries):
        return {name: sum(each[name] for each in dictionaries) for name in dictionaries[0]}

    outputs, inputs, statistics, gradients = zip(*results, strict=True)
    return whole(outputs), whole(inputs), summed(statistics), summed(gradients)


@pytest.mark.parametrize("grid", [(1, 2), (1, 4), (2, 1), (2, 2), (4, 3)], ids=str)
@pytest.mark.parametrize("option", OPTIONS)
def test_any_parts_of_a_forward_equal_the_whole(option, grid):
    moe = block(option)
    got = run_in_parts(moe, *batch(), *grid)
    expected = run(moe, *batch())
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
    moe = block(option)
    _, _, _, got = run_in_parts(moe, *batch(), *grid, without=[without])
    _, _, _, expected = run(moe, *batch())
    router, reference = got["router.weight"], expected["router.weight"]
    assert (router - reference).norm() > 1e-6 * reference.norm()


def test_experts_take_other_numbers_of_tokens_from_each_part():
    moe, (x_BSD, _) = block("expert_choice"), batch()
    x_BSD[:, : SEQ_LEN // 2] *= 10  # the sharper the scores, the sooner a token is chosen
    parts = ThreadParts.of(2)

    def count(rank):
        mine = copy.deepcopy(moe)
        mine.token_parts = TokenParts(sequence=parts[rank])
        return mine._route(mine.router(x_BSD.chunk(2, 1)[rank])).assignment.counts_E

    with ThreadPoolExecutor(2) as threads:
        counts = list(threads.map(count, range(2)))
    assert sum(counts).tolist() == [BATCH_SIZE * 4] * NUM_EXPERTS
    assert (counts[0] > counts[1]).any() and not torch.equal(*counts)
