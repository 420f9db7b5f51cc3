import numpy as np
import pytest

from framework.data.batches import IGNORED, Part, TrainData, ValidationData, whole
from framework.data.indexed import HEADER, MAGIC, TokenStream
from framework.errors import UserError

EOD = 1


@pytest.fixture
def stream_of(tmp_path):
    """Makes a stream whose documents have the given lengths and whose tokens are numbered from `first`, with EODs."""
    made = []

    def make(lengths, first=100):
        prefix = tmp_path / f"stream{len(made)}"
        made.append(prefix)
        ends = np.cumsum(lengths)
        tokens = first + np.arange(ends[-1], dtype=np.int32)
        tokens[ends - 1] = EOD
        prefix.with_suffix(".bin").write_bytes(tokens.tobytes())
        starts = (4 * (ends - lengths)).astype(np.int64)
        prefix.with_suffix(".idx").write_bytes(
            HEADER.pack(MAGIC, 1, 4, len(lengths), len(lengths) + 1) + np.array(lengths, np.int32).tobytes()
            + starts.tobytes() + np.arange(len(lengths) + 1, dtype=np.int64).tobytes()
        )
        return TokenStream(prefix)

    return make


def test_rows_are_stretches_of_the_ring(stream_of):
    stream = stream_of([5, 9, 7])
    train = TrainData([whole(stream)], [1.0], 4, seed=3, vocab_size=1000)
    ring = np.tile(stream.tokens(0, 21), 2)
    for row in train.batch(0, 50):
        assert row.dtype == np.int64 and row.shape == (5,)
        assert any(np.array_equal(ring[start : start + 5], row) for start in range(21))


def test_an_epoch_has_every_token_as_input_once_but_for_less_than_a_sequence(stream_of):
    stream = stream_of([50, 30, 23])
    train = TrainData([whole(stream)], [1.0], 10, seed=0, vocab_size=1000)
    inputs = train.batch(10, 10)[:, :-1]
    numbered = inputs[inputs != EOD]
    assert len(np.unique(numbered)) == len(numbered) >= 100 - 3


@pytest.mark.parametrize("first, cut", [(0, 0), (0, 1), (5, 7), (17, 12), (199, 3)])
def test_batches_do_not_depend_on_how_they_are_asked_for(stream_of, first, cut):
    train = TrainData([whole(stream_of([40, 60])), whole(stream_of([33], 500))], [0.75, 0.25], 8, 1, 1000)
    for method in (train.batch, train.documents):
        assert np.array_equal(np.concatenate([method(first, cut), method(first + cut, 12 - cut)]), method(first, 12))


def test_a_blend_takes_its_shares_and_each_part_in_its_own_order(stream_of):
    parts = [whole(stream_of([400], 100)), whole(stream_of([400], 1000))]
    train = TrainData(parts, [3, 1], 10, seed=5, vocab_size=2000)
    tokens = train.batch(0, 160)[:, :-1]
    second = tokens.max(axis=1) >= 1000
    assert second.sum() == 40
    first_order, second_order = tokens[~second][:40, 3], tokens[second][:40, 3] - 900
    assert (first_order == second_order).mean() < 0.5
    assert train.num_tokens == 800


def test_documents_of_training_rows_follow_the_ends_of_documents(stream_of):
    stream = stream_of([5, 9, 1, 7])
    train = TrainData([whole(stream)], [1.0], 11, seed=3, vocab_size=1000)
    tokens, documents = train.batch(0, 30), train.documents(0, 30)
    assert documents.shape == (30, 11)
    expected = np.cumsum(np.pad(tokens[:, :-2] == EOD, [(0, 0), (1, 0)]), axis=1)
    assert np.array_equal(documents, expected)
    assert documents.max() >= 2


def test_a_part_is_a_run_of_documents(stream_of):
    stream = stream_of([5, 9, 7])
    part = Part(stream, 1, 3)
    assert (part.start, part.num_tokens) == (5, 16)
    assert part.tokens(0, 2).tolist() == [105, 106]
    assert part.documents(np.array([0, 8, 9])).tolist() == [0, 0, 1]
    assert Part(stream, 3, 3).num_tokens == 0 and Part(stream, 0, 0).num_tokens == 0


@pytest.mark.parametrize("lengths, seq_len", [([5, 9, 7], 4), ([21], 7), ([3, 3], 10), ([1], 1), ([2, 1, 1, 8], 3)])
def test_validation_predicts_every_token_once_from_the_one_before(stream_of, lengths, seq_len):
    parts = [whole(stream_of(lengths)), whole(stream_of([6, 2], 500))]
    validation = ValidationData(parts, EOD, seq_len, 1000, num_bytes=7)
    tokens, targets = validation.batch(0, validation.num_windows)
    expected = np.concatenate([part.tokens(0, part.num_tokens) for part in parts])
    assert targets[targets != IGNORED].tolist() == expected.tolist()
    assert validation.num_tokens == len(expected)
    for row_tokens, row_targets in zip(tokens, targets, strict=True):
        kept = row_targets != IGNORED
        assert not (np.diff(kept.astype(int)) > 0).any()
        assert np.array_equal(row_tokens[1:][kept[1:]], row_targets[:-1][kept[1:]])
    first = np.concatenate([[0], np.cumsum([-(-part.num_tokens // seq_len) for part in parts])[:-1]])
    assert (tokens[first, 0] == EOD).all()


def test_windows_begin_with_the_token_before_their_first_target(stream_of):
    stream = stream_of([5, 9, 7])
    tokens, targets = ValidationData([whole(stream)], EOD, 4, 1000, 7).batch(2, 1)
    assert tokens.tolist() == [stream.tokens(7, 11).tolist()] and targets.tolist() == [stream.tokens(8, 12).tolist()]


def test_windows_past_the_end_are_filling(stream_of):
    validation = ValidationData([whole(stream_of([5]))], EOD, 4, 1000, 7)
    tokens, targets = validation.batch(1, 4)
    assert (targets[1:] == IGNORED).all() and (tokens[1:] == EOD).all() and (targets[0] != IGNORED).sum() == 1
    assert np.array_equal(np.concatenate([validation.batch(n, 1)[1] for n in range(5)]), validation.batch(0, 5)[1])


def test_documents_of_windows_follow_the_ends_of_documents(stream_of):
    stream = stream_of([5, 9, 7])
    validation = ValidationData([whole(stream)], EOD, 8, 1000, 7)
    tokens, documents = validation.batch(0, 4)[0], validation.documents(0, 4)
    # The end-of-document token in front counts as a document of its own.
    expected = np.cumsum(np.pad(tokens[:, :-1] == EOD, [(0, 0), (1, 0)]), axis=1)
    assert np.array_equal(documents[:2], expected[:2])
    assert documents[2].tolist() == [0, 0, 0, 0, 0, 1, 1, 1]


def test_an_empty_validation_has_no_windows(stream_of):
    validation = ValidationData([Part(stream_of([4]), 1, 1)], EOD, 4, 1000, 0)
    assert (validation.num_windows, validation.num_tokens) == (0, 0)


def test_too_few_tokens_and_tokens_beyond_the_vocabulary_are_refused(stream_of):
    stream = stream_of([30])
    with pytest.raises(UserError, match="30 tokens for training, fewer than one sequence of data.seq_len=31"):
        TrainData([whole(stream)], [1.0], 31, 0, 1000)
    with pytest.raises(UserError, match="above model.vocab_size=110"):
        TrainData([whole(stream)], [1.0], 30, 0, 110).batch(0, 1)
    with pytest.raises(UserError, match="above model.vocab_size=110"):
        ValidationData([whole(stream)], EOD, 30, 110, 7).batch(0, 1)
    assert TrainData([whole(stream)], [1.0], 30, 0, 1000).batch(0, 2).shape == (2, 31)
