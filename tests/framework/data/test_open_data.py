import subprocess
import sys

import numpy as np
import pytest

from framework.data import Rules, find_corpus, open_data, prepare_corpus
from framework.errors import UserError
from framework.recipe.schema import Data


def opened(vocab_size=600, **fields):
    return open_data(Data(**{"seq_len": 16, **fields}), vocab_size, seed=0, progress=False)


@pytest.fixture
def prepared(tokenizer, corpus_folder, data_root):
    return prepare_corpus(find_corpus([str(corpus_folder)], "made"), tokenizer, Rules(0.2), workers=1, progress=False)


def test_raw_files_get_a_tokenizer_and_are_prepared_once(corpus_folder, data_root):
    first = opened(corpus=str(corpus_folder), validation_fraction=0.2)
    assert first.tokenizer.vocab_size == 600
    files = sorted(str(path) for path in data_root.rglob("*"))
    second = opened(corpus=str(corpus_folder), validation_fraction=0.2)
    assert sorted(str(path) for path in data_root.rglob("*")) == files
    assert np.array_equal(first.train.batch(0, 9), second.train.batch(0, 9))
    assert first.validation.num_bytes == first.manifests[0].validation.bytes > 0
    assert first.validation.num_tokens == first.manifests[0].validation.tokens


def test_the_working_directory_is_a_folder_of_text_like_any_other(corpus_folder, data_root, monkeypatch):
    named = opened(corpus=str(corpus_folder), validation_fraction=0.2)
    monkeypatch.chdir(corpus_folder)
    assert np.array_equal(opened(corpus=".", validation_fraction=0.2).train.batch(0, 9), named.train.batch(0, 9))


def test_a_lone_text_file_trains_and_validates(tmp_path, data_root, corpus_folder):
    text = "".join(path.read_text() for path in sorted(corpus_folder.rglob("*.txt")))
    (tmp_path / "lone.txt").write_text(text)
    data = opened(corpus=str(tmp_path / "lone.txt"), validation_fraction=0.1)
    assert 0.08 < data.validation.num_bytes / len(text.encode()) < 0.12
    assert data.manifests[0].train.bytes + data.validation.num_bytes == len(text.encode())


def test_the_whole_stream_decodes_to_the_whole_text(corpus_folder, data_root):
    data = opened(corpus=str(corpus_folder), validation_fraction=0.2)
    _, targets = data.validation.batch(0, data.validation.num_windows)
    text = data.tokenizer.decode(targets[(targets != -100)])
    assert len(text.encode()) == data.validation.num_bytes


def test_prepared_folders_are_found_by_path_and_by_name(prepared, monkeypatch, tokenizer):
    for corpus in (str(prepared.folder), "made"):
        data = opened(corpus=corpus)
        assert data.manifests[0] == prepared.manifest and data.tokenizer.fingerprint == tokenizer.fingerprint
    assert opened(corpus="made", tokenizer=str(tokenizer.path)).train.num_tokens == prepared.train.num_tokens


def test_a_name_with_two_folders_wants_one_named(prepared, corpus_folder, tokenizer):
    prepare_corpus(find_corpus([str(corpus_folder)], "made"), tokenizer, Rules(0.1), workers=1, progress=False)
    with pytest.raises(UserError, match="name one of"):
        opened(corpus="made")


def test_a_blend_trains_one_tokenizer_and_validates_on_all(tmp_path, data_root, corpus_folder):
    second = tmp_path / "second"
    second.mkdir()
    for number in range(20):
        (second / f"{number}.txt").write_text("print the number\n" * 20)
    data = opened(blend={str(corpus_folder): 3, str(second): 1}, validation_fraction=0.2)
    assert [manifest.tokenizer_fingerprint for manifest in data.manifests] == [data.tokenizer.fingerprint] * 2
    assert data.validation.num_bytes == sum(manifest.validation.bytes for manifest in data.manifests)
    inner = [data.tokenizer.decode(row) for row in data.train.batch(0, 40)]
    assert sum("print the number" in text for text in inner) == 10


def test_a_blend_of_two_tokenizers_is_refused(prepared, corpus_folder, tokenizer, tmp_path):
    other = opened(corpus=str(corpus_folder), vocab_size=500).train.parts[0].stream.prefix.parent
    with pytest.raises(UserError, match="prepared with another tokenizer"):
        opened(blend={str(prepared.folder): 1, str(other): 1})
    assert opened(blend={str(prepared.folder): 1, str(corpus_folder): 1}).tokenizer.fingerprint == tokenizer.fingerprint


@pytest.mark.parametrize("suffix", ["", ".bin", ".idx"])
def test_a_bare_megatron_data_set_needs_no_tokenizer(prepared, suffix, tokenizer):
    data = opened(corpus=f"{prepared.folder}/train{suffix}", validation_fraction=0.25)
    assert data.tokenizer is None and data.manifests == ()
    documents = prepared.manifest.train.documents
    assert data.validation.parts[0].last - data.validation.parts[0].first == round(documents / 4)
    assert data.train.num_tokens + data.validation.num_tokens == prepared.train.num_tokens
    assert data.validation.num_bytes is None and data.validation.eod == tokenizer.eod
    with_tokenizer = opened(corpus=f"{prepared.folder}/train", tokenizer=str(tokenizer.path), validation_fraction=0)
    assert with_tokenizer.tokenizer.fingerprint == tokenizer.fingerprint
    assert with_tokenizer.validation.num_windows == 0


def test_mistakes_are_told(prepared, corpus_folder, tokenizer, tmp_path):
    with pytest.raises(UserError, match="exactly one of the two"):
        opened()
    with pytest.raises(UserError, match="exactly one of the two"):
        opened(corpus="made", blend={"made": 1})
    with pytest.raises(UserError, match="corpus no/such: no such file"):
        opened(corpus="no/such")
    with pytest.raises(UserError, match="model.vocab_size=599 is below the 600 entries of tokenizer"):
        opened(corpus="made", vocab_size=599)
    with pytest.raises(UserError, match="no such file"):
        opened(corpus=str(corpus_folder), tokenizer="none.model")
    with pytest.raises(UserError, match="fewer than one sequence of data.seq_len=1000000"):
        opened(corpus="made", seq_len=1_000_000)


def test_opening_what_is_prepared_imports_neither_torch_nor_megatron(prepared):
    code = (
        "import sys\n"
        "from framework.data import open_data\n"
        "from framework.recipe.schema import Data\n"
        f"open_data(Data(corpus={str(prepared.folder)!r}, seq_len=16), 600, 0).train.batch(0, 4)\n"
        "print([name for name in ('torch', 'megatron', 'pyarrow', 'tokenizers') if name in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
