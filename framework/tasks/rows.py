"""From texts to rows of tokens that one forward takes: pure functions, as lm-eval's `TemplateLM` and `HFLM` do it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from framework.data import Tokenizer


@dataclass(frozen=True)
class Row:
    """What a model reads, and what its last positions should predict, one token each."""

    tokens: tuple[int, ...]
    targets: tuple[int, ...]


def encode_pair(tokenizer: Tokenizer, context: str, continuation: str) -> tuple[list[int], list[int]]:
    """Tokens of a context, at least one, and of what follows it.

    The continuation is what the whole text's tokens have past as many as the context has alone. Spaces that end the
    context begin the continuation. Where no context is left it is the token that ends documents.
    """
    whole, alone = tokenizer.encode(context + continuation), tokenizer.encode(context.rstrip())
    return alone or [tokenizer.eod], whole[len(alone) :]


def split(tokens: Sequence[int], num_targets: int, seq_len: int) -> list[Row]:
    """Rows of at most `seq_len` tokens that predict the last `num_targets` of `tokens`, each once.

    Up to `seq_len` targets are one row, and context that does not fit is left out at its left end. More are several
    rows, all but the last full of targets, each with all the context before them that fits.
    """
    assert 0 <= num_targets < len(tokens), "the first token has nothing that predicts it"
    rows, first = [], len(tokens) - num_targets
    for start in range(first, len(tokens), seq_len):
        end = min(start + seq_len, len(tokens))
        rows.append(Row(tuple(tokens[max(0, end - 1 - seq_len) : end - 1]), tuple(tokens[start:end])))
    return rows
