"""How long the ranks of a pipeline stand idle: a pure function of the order in which they work."""

import re
from collections.abc import Mapping, Sequence
from itertools import zip_longest
from typing import NamedTuple

COSTS = {"F": 1, "B": 2, "I": 1, "W": 1}
"""Time of a forward, a whole backward, and its halves: gradients of a stage's input and of its weights."""


class Action(NamedTuple):
    """What a rank does for one micro-batch in one of its stages; kind: a key of COSTS."""

    stage: int
    kind: str
    micro_batch: int


def read_actions(order: Sequence[object]) -> list[Action]:
    """The computations among the actions of a schedule of torch.distributed.pipelining, which print as 2F0 or 1W3."""
    found = (re.fullmatch(r"(\d+)([FBIW])(\d+)", str(action)) for action in order)
    return [Action(int(match[1]), match[2], int(match[3])) for match in found if match]


def join_backwards(order: Sequence[Action]) -> list[Action]:
    """The same order with whole backwards where the first halves stood."""
    return [action._replace(kind="B") if action.kind == "I" else action for action in order if action.kind != "W"]


def one_forward_one_backward(num_ranks: int, num_micro_batches: int) -> dict[int, list[Action]]:
    """The order of 1F1B with a stage on each rank, by rank (https://arxiv.org/abs/2006.09503).

    `Schedule1F1B` works in this order, but says it wrongly for the last rank (torch 2.11 to 2.13).
    """
    order = {}
    for rank in range(num_ranks):
        forwards = [Action(rank, "F", index) for index in range(num_micro_batches)]
        backwards = [Action(rank, "B", index) for index in range(num_micro_batches)]
        num_first = min(num_ranks - rank, num_micro_batches)
        pairs = zip_longest(backwards, forwards[num_first:])
        order[rank] = forwards[:num_first] + [action for pair in pairs for action in pair if action]
    return order


def bubble_share(order: Mapping[int, Sequence[Action]]) -> float:
    """The share of all ranks' time in which they wait, from the first forward to the last backward: 0 is none.

    order: by rank. Each rank works through its own as soon as what an action needs is there: the stage before has made
    its forward of the micro-batch, the stage after has made its backward. Sending takes no time. For m micro-batches on
    p ranks with v stages each, 1F1B (v = 1) and its interleaved form wait (p - 1) / (v m + p - 1) of the time
    (https://arxiv.org/abs/2104.04473, Section 2.2).

    Raises ValueError for an order in which an action waits for ever.
    """
    ends: dict[Action, int] = {}
    clocks, taken = dict.fromkeys(order, 0), dict.fromkeys(order, 0)
    last_stage = max(action.stage for actions in order.values() for action in actions)
    while any(taken[rank] < len(order[rank]) for rank in order):
        before = sum(taken.values())
        for rank, actions in order.items():
            while taken[rank] < len(actions) and (ready := _ready(actions[taken[rank]], last_stage, ends)) is not None:
                action = actions[taken[rank]]
                clocks[rank] = max(clocks[rank], ready) + COSTS[action.kind]
                ends[action] = clocks[rank]
                taken[rank] += 1
        if sum(taken.values()) == before:
            raise ValueError(f"actions wait for ever after {before} of them")
    busy = sum(COSTS[action.kind] for action in ends)
    return 1 - busy / (len(order) * max(clocks.values()))


def _ready(action: Action, last_stage: int, ends: Mapping[Action, int]) -> int | None:
    """When everything that an action needs is there; None where something has not been done yet."""
    stage, kind, micro_batch = action
    if kind == "F":
        return 0 if stage == 0 else ends.get(Action(stage - 1, "F", micro_batch))
    if kind == "W":
        return ends.get(Action(stage, "I", micro_batch))
    if stage == last_stage:
        return ends.get(Action(stage, "F", micro_batch))
    return ends.get(Action(stage + 1, "B", micro_batch), ends.get(Action(stage + 1, "I", micro_batch)))
