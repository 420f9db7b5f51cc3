import hashlib

import pytest

from framework.data import find_corpus, train_tokenizer
from framework.data.sources import Holdout
from framework.data.tokenizer_training import _sample, _sentences
from framework.errors import UserError


def train(folder, out, **options):
    return train_tokenizer(find_corpus([str(folder)]), 500, out, report=pytest.fail, **options)


def test_the_same_corpus_gives_the_same_file_wherever_it_lies(corpus_folder, tmp_path):
    first = train(corpus_folder, tmp_path / "a.model")
    corpus_folder.rename(tmp_path / "moved")
    assert train(tmp_path / "moved", tmp_path / "b.model").fingerprint == first.fingerprint
    assert first.vocab_size == 500


def test_held_out_documents_are_never_seen(corpus_folder):
    corpus = find_corpus([str(corpus_folder)])
    sample = list(_sample(corpus, 1 << 20, "text", Holdout(0.2), pytest.fail))
    expected = [file.path.read_text() for file in corpus.files
                if int(hashlib.md5(file.key.encode()).hexdigest(), 16) % 5]
    assert sorted(sample) == sorted(expected) and len(expected) < len(corpus.files)


def test_a_sample_is_bounded_in_bytes_and_in_each_file(tmp_path, monkeypatch):
    monkeypatch.setattr("framework.data.tokenizer_training.SHARE_OF_ONE_FILE", 100)
    (tmp_path / "long.txt").write_text("x" * 5000)
    for number in range(50):
        (tmp_path / f"{number}.txt").write_text("y" * 50)
    sample = list(_sample(find_corpus([str(tmp_path)]), 1000, "text", Holdout(0), pytest.fail))
    assert 900 <= sum(map(len, sample)) <= 1100
    assert max(map(len, sample)) <= 100


def test_sentences_lose_only_what_the_trainer_keeps_for_itself():
    text = "a\tb\n\n  c \u2581\u2585\0d\n"
    sentences = list(_sentences(iter([text])))
    assert "".join(sentences) == "ab\n\n  c d\n"
    assert all("\n" not in sentence.lstrip("\n") for sentence in sentences)


def test_pieces_hold_spaces_and_indents_but_never_cross_a_line(tokenizer):
    pieces = [tokenizer.piece(token) for token in range(tokenizer.vocab_size)]
    assert any(piece.startswith("\n\u2581\u2581\u2581\u2581") for piece in pieces)
    assert any("\u2581" in piece.strip("\n\u2581") for piece in pieces)
    assert not any("\n" in piece.lstrip("\n") for piece in pieces)


@pytest.mark.parametrize("vocab_size, message", [(100, "at least [0-9]+ are needed"), (100_000, "too high")])
def test_a_vocabulary_that_does_not_fit_is_refused_in_one_line(corpus_folder, tmp_path, vocab_size, message):
    with pytest.raises(UserError, match=f"tokenizer of {vocab_size} entries.*{message}") as error:
        train_tokenizer(find_corpus([str(corpus_folder)]), vocab_size, tmp_path / "a.model", report=pytest.fail)
    assert "\n" not in str(error.value)
    assert not list(tmp_path.glob("*a.model*"))
