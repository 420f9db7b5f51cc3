"""The pattern language, against expansion by Python's own string repetition."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from framework.recipe import RecipeError, architecture
from framework.recipe.pattern import count, describe, parse
from framework.recipe.schema import Model

LETTERS = "*-EmM"
NAMES = {"*": "attention", "-": "FFN", "E": "MoE", "m": "Mamba-1", "M": "Mamba-2"}


def patterns():
    """Pairs of (pattern, the layers that it stands for)."""
    letter = st.sampled_from(LETTERS).map(lambda letter: (letter, [letter]))
    branches = st.text(LETTERS, min_size=1, max_size=3).map(lambda letters: (f"[{letters}]", [letters]))

    def compose(inner):
        sequence = st.lists(inner, min_size=1, max_size=3).map(
            lambda items: ("".join(text for text, _ in items), sum((layers for _, layers in items), []))
        )
        repeated = st.tuples(sequence, st.integers(1, 3)).map(
            lambda pair: (f"({pair[0][0]})x{pair[1]}", pair[0][1] * pair[1])
        )
        return sequence | repeated

    return st.recursive(letter | branches, compose, max_leaves=8)


@given(patterns())
def test_expansion(pair):
    text, layers = pair
    assert list(parse(text, LETTERS).layers) == layers


@given(st.text("*-EmMx()[]|12Q ", max_size=12))
def test_any_text_is_read_or_refused_in_one_line(text):
    try:
        parsed = parse(text, LETTERS)
    except RecipeError as error:
        assert "\n" not in str(error) and "model.pattern" in str(error)
    else:
        assert parsed.layers and all(0 < cut < len(parsed.layers) for cut in parsed.cuts)


@pytest.mark.parametrize(("text", "words", "totals"), [
    ("(mE)x8", "(Mamba-1, MoE) x8", "Mamba-1 x8, MoE x8"),
    ("(*E)x2|*-", "(attention, MoE) x2, pipeline cut, attention, FFN", "attention x3, MoE x2, FFN x1"),
    ("[mE]x8", "[Mamba-1 + MoE] x8", "Mamba-1 x8, MoE x8"),
    ("((M)x2*)x2", "(Mamba-2 x2, attention) x2", "Mamba-2 x4, attention x2"),
    ("Mx3", "Mamba-2 x3", "Mamba-2 x3"),
])
def test_words(text, words, totals):
    parsed = parse(text, LETTERS)
    assert describe(parsed, NAMES) == words
    assert count(parsed, NAMES) == totals


def test_cuts_stand_before_layers():
    assert parse("*E|*E|(*E)x2", LETTERS).cuts == (2, 4)
    assert parse("(*E|)x3*E", LETTERS).cuts == (2, 4, 6)


@pytest.mark.parametrize(("text", "said"), [
    ("(*Q)x2", "'Q' at position 3"), ("(*e)x2", "nearest: E"), ("T", "'T' at position 1"), ("(*E", "'(' without ')'"),
    ("*E)", "')' without '('"), ("[mE", "'[' without ']'"), ("*]", "']' at position 2"), ("()x2", "empty brackets"),
    ("[]", "empty brackets"), ("", "an empty pattern"), ("*x", "'x' as a repeat"), ("*x0", "'x0' as a repeat"),
    ("*xx2", "'x' as a repeat"), ("|*", "nothing on one side"), ("*|", "nothing on one side"), ("*||*", "nothing on"),
    ("(*|)x2", "nothing on one side"), ("[*|E]", "'|' at position 3"), ("* E", "' ' at position 2"),
    ("x2", "'x' at position 1"), ("2*", "'2' at position 1"), ("((*)x999)x999", "998001 layers"),
    ("(" * 30 + "*" + ")" * 30, "nested more than"), ("*x9999999", "as a repeat"), ("|", "an empty pattern"),
])
def test_errors_say_where(text, said):
    with pytest.raises(RecipeError) as caught:
        parse(text, LETTERS)
    assert said in str(caught.value)


def test_architecture_fills_every_size():
    model = Model(pattern="*EmM|[-E]", d_model=64, vocab_size=10, attention={"num_heads": 4, "num_kv_heads": 2},
                  ffn={"d_ff": 128}, moe={"expansion_rate": 4, "granularity": 2})
    structure = architecture(model)
    attention, moe, mamba1, mamba2, dense, _ = (sublayer.settings for sublayer in structure.sublayers())
    assert (attention.num_kv_heads, attention.head_dim) == (2, 16)
    assert (moe.num_experts, moe.top_k, moe.d_expert, moe.granularity, moe.expansion_rate) == (8, 2, 64, 2, 4)
    assert (mamba1.d_state, mamba1.dt_rank, mamba2.d_state) == (16, 4, 128)
    assert (dense.d_ff, dense.multiplier) == (128, 2.0)
    assert structure.cuts == (4,) and [len(layer.branches) for layer in structure.layers] == [1, 1, 1, 1, 2]


def test_explicit_experts_may_be_of_any_width():
    model = Model(pattern="E", d_model=256, vocab_size=10, moe={"num_experts": 30, "top_k": 4, "d_expert": 100})
    (moe,) = (sublayer.settings for sublayer in architecture(model).sublayers())
    assert (moe.num_experts, moe.top_k, moe.d_expert, moe.granularity, moe.expansion_rate) == (30, 4, 100, None, None)


def test_further_letters_differ_from_the_section_in_their_own_fields():
    model = Model(
        pattern="*WEF-D", d_model=64, vocab_size=10, moe={"expansion_rate": 4, "granularity": 2},
        attention={"num_heads": 4}, ffn={"multiplier": 2},
        sublayers={"W": {"kind": "attention", "window": 16}, "F": {"kind": "moe", "granularity": 8, "z_loss_weight": 1},
                   "D": {"kind": "ffn", "d_ff": 96}},
    )
    full, window, moe, fine, dense, narrow = (sublayer.settings for sublayer in architecture(model).sublayers())
    assert (full.window, window.window, window.num_heads) == (None, 16, 4)
    assert (moe.num_experts, fine.num_experts, fine.d_expert, fine.z_loss_weight) == (8, 32, 16, 1)
    assert (dense.d_ff, narrow.d_ff) == (128, 96)
