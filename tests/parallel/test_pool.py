"""The pool of live ranks: results, errors, hangs, deaths."""

import os
import time
from dataclasses import dataclass

import pytest
import torch
import torch.distributed as dist

from parallel.pool import RankError, RankPool


@dataclass
class Answer:
    rank: int
    total: float


def add_ranks(start: float) -> Answer:
    total = torch.tensor(start + dist.get_rank())
    dist.all_reduce(total)
    return Answer(dist.get_rank(), total.item())


def process_and_threads() -> tuple[int, int]:
    return os.getpid(), torch.get_num_threads()


def one_raises() -> None:
    if dist.get_rank() == 1:
        raise KeyError("the culprit")
    dist.all_reduce(torch.ones(3))


def one_hangs() -> None:
    if dist.get_rank() == 1:
        time.sleep(1000)


def one_dies() -> None:
    if dist.get_rank() == 1:
        os._exit(7)
    dist.all_reduce(torch.ones(3))


def test_results_come_in_order_of_rank_from_worlds_of_any_size(ranks):
    for size in (2, 4, 1, 3, 2):
        assert ranks.run(size, add_ranks, 1.0) == [Answer(r, size + size * (size - 1) / 2) for r in range(size)]


def test_ranks_stay_alive_with_one_thread_each(ranks):
    first, second = ranks.run(2, process_and_threads), ranks.run(2, process_and_threads)
    assert first == second
    assert [threads for _, threads in first] == [1, 1]


@pytest.mark.parametrize("function, message", [
    (one_raises, "rank 1 failed first(.|\n)*KeyError: 'the culprit'"),
    (one_hangs, r"ranks \[1\] did not end within 0.5 s"),
    (one_dies, r"rank 1 failed first:\nit died"),
])
def test_a_failure_is_told_and_the_next_call_works(function, message):
    pool = RankPool()
    with pytest.raises(RankError, match=message):
        pool.run(2, function, timeout=0.5 if function is one_hangs else 20)
    assert len(pool.run(2, add_ranks, 0.0)) == 2
    pool.close()
