"""Texts become the rows that lm-eval's own model of transformers would make of them."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from framework.tasks.rows import encode_pair, split
from tests.framework.tasks.stand_ins import Letters

PAIRS = {  # context, continuation: the pieces of both
    ("xy", "z"): (["x", "y"], ["z"]),
    ("xy", " z"): (["x", "y"], [" ", "z"]),
    ("xy ", "z"): (["x", "y"], [" ", "z"]),
    ("xa", "b z"): (["x", "a"], [" ", "z"]),  # "ab" is one token of the whole text
    ("x\n\n", "z"): (["x"], ["\n\n", "z"]),
    ("", "z"): ([""], ["z"]),
    (" \n", "z"): ([""], [" ", "\n", "z"]),
    ("xy", ""): (["x", "y"], []),
}


@pytest.mark.parametrize("texts", PAIRS)
def test_the_border_of_context_and_continuation_is_lm_evals(texts):
    pieces = tuple([Letters.pieces[token] for token in part] for part in encode_pair(Letters(), *texts))
    assert pieces == PAIRS[texts]


def rolling(tokens: list[int], prefix: int, length: int) -> list[tuple[list[int], list[int]]]:
    """lm-eval's `get_rolling_token_windows` with context_len=1, from what its docstring says."""
    first = min(length, len(tokens))
    windows = [([prefix, *tokens[: first - 1]], tokens[:first])]
    predicted = first
    while predicted < len(tokens):
        end = min(predicted + length, len(tokens))
        windows.append((tokens[end - length - 1 : end - 1], tokens[predicted:end]))
        predicted = end
    return windows


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 40), st.integers(1, 12))
def test_a_whole_text_is_split_into_lm_evals_windows(num_tokens, seq_len):
    tokens = list(range(1, num_tokens + 1))
    rows = split([0, *tokens], num_tokens, seq_len)
    assert [(list(row.tokens), list(row.targets)) for row in rows] == rolling(tokens, 0, seq_len)


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 30), st.integers(1, 12), st.integers(1, 12))
def test_a_context_that_is_too_long_loses_its_left_end(num_context, num_targets, seq_len):
    tokens = list(range(num_context + num_targets))
    rows = split(tokens, num_targets, seq_len)
    assert [target for row in rows for target in row.targets] == tokens[num_context:]
    if num_targets <= seq_len:
        row, = rows
        assert list(row.tokens) == tokens[-(seq_len + 1) :][:-1]  # as HFLM has it
    for row in rows:  # the last token read stands just before the last one predicted
        assert row.tokens[-1] + 1 == row.targets[-1] and len(row.tokens) <= seq_len


def test_nothing_to_predict_is_no_row():
    assert split([3, 4], 0, 8) == []
