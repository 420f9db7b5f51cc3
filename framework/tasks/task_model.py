"""What lm-eval's tasks call: the interface of its class `LM`, over rows that a team of ranks scores.

It is no subclass, as lm-eval asks for none and takes seconds to import.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

from framework.tasks.conditions import new_tokens
from framework.tasks.rows import Row, encode_pair, split
from framework.tasks.scoring import NATS, WRONG

if TYPE_CHECKING:
    from framework.data import Tokenizer
    from framework.tasks.collective import Team
    from framework.tasks.continuation import Continue, Ended


class Request(Protocol):
    """lm-eval's Instance: texts, and settings where text is generated."""

    args: tuple[Any, ...]


class TaskModel:
    """A language model as lm-eval sees it: one rank, which gets all requests.

    Log-likelihoods are in nats; tokens before the last `seq_len` that a forward takes are left out, and texts begin
    after the token that ends documents where nothing stands before them.
    """

    rank, world_size = 0, 1

    def __init__(self, team: Team, tokenizer: Tokenizer, seq_len: int, continued: Continue) -> None:
        self.team, self.tokenizer, self.seq_len, self._continued = team, tokenizer, seq_len, continued

    def loglikelihood(self, requests: Sequence[Request]) -> list[tuple[float, bool]]:
        """Of (context, continuation): log p(continuation | context), and whether its tokens are all the likeliest."""
        rows = []
        for context, continuation in (request.args for request in requests):
            before, after = encode_pair(self.tokenizer, context, continuation)
            rows.append(split([*before, *after], len(after), self.seq_len))
        return [(-nats, wrong == 0) for nats, wrong in self._sums(rows)]

    def loglikelihood_rolling(self, requests: Sequence[Request]) -> list[float]:
        """Of (text,): its log-likelihood, every token predicted once, in windows of `seq_len`."""
        texts = [self.tokenizer.encode(request.args[0]) for request in requests]
        rows = [split([self.tokenizer.eod, *tokens], len(tokens), self.seq_len) for tokens in texts]
        return [-nats for nats, _ in self._sums(rows)]

    def generate_until(self, requests: Sequence[Request]) -> list[str]:
        """Of (context, settings): what the likeliest tokens spell, up to the first of settings["until"], the end of the
        document or the most tokens. Raises as `require_possible` for settings that this is not.
        """
        texts = [""] * len(requests)
        for (most, *stops), numbers in self._by_settings(requests).items():
            contexts = [self.tokenizer.encode(requests[number].args[0]) for number in numbers]
            prompts = [tuple(context or [self.tokenizer.eod])[-(self.seq_len - most) :] for context in contexts]
            for number, tokens in zip(numbers, self._continued(prompts, most, self._ended(stops)), strict=True):
                texts[number] = self._cut(tokens, stops)
        return texts

    def _sums(self, rows: Sequence[Sequence[Row]]) -> list[tuple[float, float]]:
        """(nats, targets that are not the likeliest) of the rows of each request together."""
        results_N3 = self.team.score([row for group in rows for row in group])
        parts = results_N3.split([len(group) for group in rows])
        return [(part[:, NATS].sum().item(), part[:, WRONG].sum().item()) for part in parts]

    def _by_settings(self, requests: Sequence[Request]) -> dict[tuple[Any, ...], list[int]]:
        """Numbers of the requests with the same (most new tokens, *stops)."""
        groups: dict[tuple[Any, ...], list[int]] = defaultdict(list)
        for number, request in enumerate(requests):
            settings = request.args[1]
            until = settings.get("until") or []
            groups[new_tokens(settings), *([until] if isinstance(until, str) else until)].append(number)
        return groups

    def _ended(self, stops: Sequence[str]) -> Ended:
        def ended(tokens: Sequence[int]) -> bool:
            if tokens[-1] == self.tokenizer.eod:
                return True
            text = self.tokenizer.decode(tokens) if stops else ""
            return any(stop in text for stop in stops if stop)

        return ended

    def _cut(self, tokens: Sequence[int], stops: Sequence[str]) -> str:
        text = self.tokenizer.decode(tokens[:-1] if tokens[-1:] == [self.tokenizer.eod] else tokens)
        for stop in stops:
            text = text.split(stop)[0] if stop else text
        return text
