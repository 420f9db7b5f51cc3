"""Text of tokens as they come."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from framework.data import Tokenizer

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


def stream_text(tokenizer: Tokenizer, before: Sequence[int], tokens: Iterable[int]) -> Iterator[str]:
    """Yield what each token adds to the text of those before it; a character spread over tokens comes when whole.

    Only the tokens since the last yield are decoded again, behind the few that may change how they read.
    """
    context, pending = list(before[-4:]), []
    for token in tokens:
        pending.append(token)
        text = tokenizer.decode(context + pending)
        if not text.endswith(REPLACEMENT):
            yield text[len(tokenizer.decode(context)):]
            context, pending = (context + pending)[-4:], []
    if pending:
        yield tokenizer.decode(context + pending)[len(tokenizer.decode(context)):]
