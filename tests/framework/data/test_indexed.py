import pickle
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from framework.data import TokenStream
from framework.errors import UserError

DOCUMENTS = [[5, 6, 7], [8], [], [9, 10, 11, 12]]


@pytest.fixture(scope="module")
def megatron():
    pytest.importorskip("megatron.core")
    from megatron.core.datasets import indexed_dataset

    return indexed_dataset


def write(megatron, prefix, documents, dtype=np.uint16, **options):
    builder = megatron.IndexedDatasetBuilder(f"{prefix}.bin", dtype=dtype, **options)
    for document in documents:
        builder.add_document(np.array(document, dtype), [len(document)], *([[1]] if options else []))
    builder.finalize(f"{prefix}.idx")
    return prefix


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.int16, np.uint16, np.int32, np.int64])
def test_reads_what_megatron_writes(megatron, tmp_path, dtype):
    stream = TokenStream(write(megatron, tmp_path / "a", DOCUMENTS, dtype))
    assert stream.dtype == dtype
    assert stream.tokens(0, 8).tolist() == sum(DOCUMENTS, []) and stream.tokens(0, 8).dtype == np.int64
    assert stream.document_ends.tolist() == [3, 4, 4, 8] and stream.num_documents == 4
    reference = megatron.IndexedDataset(str(tmp_path / "a"))
    assert [reference[number].tolist() for number in range(4)] == DOCUMENTS


def test_documents_of_several_sequences_and_of_images(megatron, tmp_path):
    builder = megatron.IndexedDatasetBuilder(f"{tmp_path}/a.bin", dtype=np.int32)
    builder.add_document(np.arange(7), [3, 4])
    builder.add_document(np.arange(2), [2])
    builder.finalize(f"{tmp_path}/a.idx")
    assert TokenStream(tmp_path / "a").document_ends.tolist() == [7, 9]
    assert TokenStream(write(megatron, tmp_path / "b", DOCUMENTS, multimodal=True)).num_tokens == 8


@settings(max_examples=30, deadline=None)
@given(documents=st.lists(st.lists(st.integers(0, 60000), max_size=9), min_size=1, max_size=20), data=st.data())
def test_any_stretch_and_the_documents_of_positions(megatron, tmp_path_factory, documents, data):
    stream = TokenStream(write(megatron, tmp_path_factory.mktemp("x") / "a", documents))
    joined = sum(documents, [])
    start = data.draw(st.integers(0, len(joined)))
    stop = data.draw(st.integers(start, len(joined)))
    assert stream.tokens(start, stop).tolist() == joined[start:stop]
    owners = [number for number, document in enumerate(documents) for _ in document]
    assert stream.documents(np.arange(len(joined))).tolist() == owners


def test_pickles_as_its_path(megatron, tmp_path):
    stream = TokenStream(write(megatron, tmp_path / "a", [range(10000)]))
    assert len(pickle.dumps(stream)) < 500
    assert pickle.loads(pickle.dumps(stream)).tokens(9998, 10000).tolist() == [9998, 9999]


def test_every_cut_of_the_index_and_of_the_tokens_is_refused(megatron, tmp_path):
    prefix = write(megatron, tmp_path / "a", DOCUMENTS)
    for path in (tmp_path / "a.idx", tmp_path / "a.bin"):
        content = path.read_bytes()
        for length in range(len(content)):
            path.write_bytes(content[:length])
            with pytest.raises(UserError, match=path.name):
                TokenStream(prefix)
        path.write_bytes(content + b"\0" * 64)
        with pytest.raises(UserError, match=path.name):
            TokenStream(prefix)
        path.write_bytes(content)
    assert TokenStream(prefix).num_tokens == 8


DAMAGES = [(0, b"X"), (9, b"\2"), (17, b"\6"), (17, b"\t"), (34, b"\xff"), (50, b"\1"), (88, b"\7")]


@pytest.mark.parametrize("offset, value", DAMAGES)
def test_a_foreign_or_contradictory_index_is_refused(megatron, tmp_path, offset, value):
    prefix = write(megatron, tmp_path / "a", DOCUMENTS)
    content = bytearray((tmp_path / "a.idx").read_bytes())
    assert content[offset : offset + 1] != value
    content[offset : offset + 1] = value
    (tmp_path / "a.idx").write_bytes(content)
    with pytest.raises(UserError):
        TokenStream(prefix)


def test_huge_counts_in_the_header_are_refused_and_not_allocated(megatron, tmp_path):
    prefix = write(megatron, tmp_path / "a", DOCUMENTS)
    content = bytearray((tmp_path / "a.idx").read_bytes())
    content[18:34] = struct.pack("<QQ", 2**60, 2**60)
    (tmp_path / "a.idx").write_bytes(content)
    with pytest.raises(UserError, match="its header speaks of"):
        TokenStream(prefix)


def test_missing_files_are_named(tmp_path):
    with pytest.raises(UserError, match="a.idx"):
        TokenStream(tmp_path / "a")
