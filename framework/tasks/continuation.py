"""Greedy continuations of prompts: with caches where the whole model is here, by forwards of all ranks elsewhere."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from framework.tasks.rows import Row
from framework.tasks.scoring import LIKELIEST, Watch, unwatched

if TYPE_CHECKING:
    from framework.model import LanguageModel
    from framework.tasks.collective import Team

Prompt = tuple[int, ...]
Ended = Callable[[Sequence[int]], bool]
"""Asked after every token of a continuation, whether it is over."""
Continue = Callable[[Sequence[Prompt], int, Ended], list[list[int]]]
"""(prompts, most new tokens, ended) -> the new tokens of each, with the one that ended it."""


def with_caches(model: LanguageModel, batch_size: int, watch: Watch = unwatched) -> Continue:
    """For a whole model in one process. Prompts of equal length go together, `batch_size` of them; watch: told of
    prompts."""
    def continued(prompts: Sequence[Prompt], most: int, ended: Ended) -> list[list[int]]:
        found: list[list[int]] = [[] for _ in prompts]
        watch(0, len(prompts))
        for batch in _equally_long(prompts, batch_size):
            _continue_batch(model, [prompts[number] for number in batch], [found[number] for number in batch], most,
                            ended)
            watch(len(batch), 0)
        return found

    return continued


def by_forwards(team: Team) -> Continue:
    """For any layout, on rank 0 within `Team.lead`. Every token costs a forward of the whole row, as ranks that hold
    parts of a sequence or some of the layers have no caches.
    """
    def continued(prompts: Sequence[Prompt], most: int, ended: Ended) -> list[list[int]]:
        found: list[list[int]] = [[] for _ in prompts]
        longest_first = sorted(range(len(prompts)), key=lambda number: -len(prompts[number]))
        for first in range(0, len(prompts), team.scorer.num_rows):
            going = longest_first[first : first + team.scorer.num_rows]
            for _ in range(most):
                rows = [Row((*prompts[number], *found[number]), (0,)) for number in going]
                for number, token in zip(going, team.score(rows)[:, LIKELIEST].tolist(), strict=True):
                    found[number].append(int(token))
                if not (going := [number for number in going if not ended(found[number])]):
                    break
        return found

    return continued


def _equally_long(prompts: Sequence[Prompt], batch_size: int) -> Iterator[list[int]]:
    by_length: dict[int, list[int]] = defaultdict(list)
    for number, prompt in enumerate(prompts):
        by_length[len(prompt)].append(number)
    for numbers in by_length.values():
        for first in range(0, len(numbers), batch_size):
            yield numbers[first : first + batch_size]


def _continue_batch(
    model: LanguageModel, prompts: Sequence[Prompt], found: Sequence[list[int]], most: int, ended: Ended
) -> None:
    """Fill the lists, until all have ended."""
    import torch

    from framework.model.generate import generate_batch

    going = set(range(len(prompts)))
    prompt_BS = torch.tensor(prompts, device=model.embedding.weight.device)
    for token_B in generate_batch(model, prompt_BS, most, temperature=0.0):
        for number, token in enumerate(token_B.tolist()):
            if number in going:
                found[number].append(token)
                if ended(found[number]):
                    going.remove(number)
        if not going:
            return
