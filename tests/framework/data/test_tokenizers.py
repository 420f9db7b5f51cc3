import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from framework.data import load_tokenizer
from framework.data.tokenizers import BLOCK_CHARACTERS, SPACE_MARK
from framework.errors import UserError

HARD = [
    "", " ", "   ", "\n", "\r\n", "\t", "\t\t x", "\0", "a\0b", " lead", "trail ", "  a  b\n\n  c ", "\u2581",
    "a\u2581 \u2581b\u2581", "\u2585",
    "\ufeffx", "\u200b", "\U0010ffff", "\ufffe", "e\u0301", "\u00a0", "\x7f\x80\x85\u2028\u2029", "<eod>", "<unk>",
    "<0x41>", "\U0001f600\U0001f468\u200d\U0001f469", "\u00c5\u212b\ufb01", "\x1b[0m", "  \n  \n", "\u3000",
]
TEXTS = st.one_of(
    st.text(),
    st.text(alphabet=" \n\t\r\0\u2581\u2585<>0xe5a\ufeff", max_size=40),
    st.lists(st.sampled_from(HARD)).map("".join),
)


@pytest.mark.parametrize("text", HARD)
def test_decoding_an_encoding_gives_the_hard_texts_back(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode(text)) == text


@settings(max_examples=500, deadline=None)
@given(text=TEXTS)
def test_decoding_an_encoding_gives_any_text_back(tokenizer, text):
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert tokenizer.eod not in ids
    assert all(0 <= token < tokenizer.vocab_size for token in ids)


def test_sentencepiece_alone_loses_the_space_mark(tokenizer):
    assert tokenizer._model.decode(tokenizer._model.encode(SPACE_MARK)) == " "


def test_blocks_change_no_token(tokenizer):
    assert "\n\n" in map(tokenizer.piece, range(tokenizer.vocab_size))
    line = "\n\n    def value_7(self):\tx = 1"
    shifted = ["x" * shift + line * 1200 for shift in range(len(line))]
    for text in ("\n" * (2 * BLOCK_CHARACTERS), "x" * (3 * BLOCK_CHARACTERS), line * 2000 + "\n" * 9, *shifted):
        assert tokenizer.encode(text) == tokenizer._model.encode(text)
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_blocks_are_really_cut(tokenizer):
    text = "\n    def value" * 5000
    blocks = list(tokenizer._blocks(text))
    assert len(blocks) > 2 and "".join(blocks) == text
    assert max(map(len, blocks)) < BLOCK_CHARACTERS + 100


def test_ids_outside_the_vocabulary_and_the_end_of_document_decode_to_nothing(tokenizer):
    ids = tokenizer.encode("self")
    assert tokenizer.decode([*ids, tokenizer.eod, tokenizer.vocab_size + 5]) == "self"


def test_a_foreign_sentencepiece_model_encodes_as_it_does_itself(tmp_path):
    from sentencepiece import SentencePieceProcessor, SentencePieceTrainer

    (tmp_path / "text.txt").write_text("the model and the router and the expert\n" * 20)
    SentencePieceTrainer.train(input=str(tmp_path / "text.txt"), model_prefix=str(tmp_path / "other"), vocab_size=40,
                               hard_vocab_limit=False, minloglevel=2)
    foreign = load_tokenizer(tmp_path / "other.model")
    reference = SentencePieceProcessor(model_file=str(tmp_path / "other.model"))
    text = f"the router {SPACE_MARK} and\nthe model"
    assert foreign.encode(text) == reference.encode(text)
    assert foreign.decode(foreign.encode("the router and")) == "the router and"
    assert foreign.eod == reference.eos_id()


@pytest.fixture
def byte_level(tmp_path):
    """Path of a byte-level BPE tokenizer.json with a special token."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    engine = Tokenizer(models.BPE())
    engine.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    engine.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=["<|mine|>", "<|endoftext|>"], show_progress=False,
                                  initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    engine.train_from_iterator(["def value(self): return number\n" * 30], trainer)
    engine.save(str(tmp_path / "tokenizer.json"))
    return tmp_path / "tokenizer.json"


@pytest.mark.parametrize("text", HARD)
def test_hugging_face_gives_text_back_and_takes_no_special_token_from_it(byte_level, text):
    tokenizer = load_tokenizer(byte_level)
    text += "<|endoftext|>"
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text and tokenizer.eod not in ids


def test_hugging_face_end_of_document(byte_level):
    assert load_tokenizer(byte_level).piece(load_tokenizer(byte_level).eod) == "<|endoftext|>"
    config = byte_level.with_name("tokenizer_config.json")
    for eos in ("<|mine|>", {"content": "<|mine|>", "lstrip": False}):
        config.write_text(json.dumps({"eos_token": eos}))
        assert load_tokenizer(byte_level).eod == 0
    config.write_text("[]")
    with pytest.raises(UserError, match="tokenizer_config.json"):
        load_tokenizer(byte_level)


def test_what_is_no_tokenizer_is_refused(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        load_tokenizer(tmp_path / "a.model")
    with pytest.raises(UserError, match="another suffix"):
        load_tokenizer(tmp_path / "a.txt")
    for name in ("a.model", "a.json"):
        for content in (b"\x80{}", b""):
            (tmp_path / name).write_bytes(content)
            with pytest.raises(UserError, match="not a"):
                load_tokenizer(tmp_path / name)
