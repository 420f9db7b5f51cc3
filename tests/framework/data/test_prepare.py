import hashlib
import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from framework.data import Rules, find_corpus, open_prepared, prepare_corpus
from framework.data import writing as writing_module
from framework.errors import UserError

LINE = json.dumps({"text": "def value(self): return number\n" * 20})


def prepare(tokenizer, *inputs, workers=1, name="made", **rules):
    return prepare_corpus(find_corpus([str(given) for given in inputs], name), tokenizer, Rules(**rules),
                          workers=workers, progress=False)


def files_in(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_what_is_prepared_is_the_corpus(tokenizer, corpus_folder, data_root):
    prepared = prepare(tokenizer, corpus_folder, validation_fraction=0.2)
    assert prepared.folder.parent == data_root and prepared.folder.name.startswith("made-")
    for split, stream in (("train", prepared.train), ("validation", prepared.validation)):
        expected = [file.path.read_text() for file in find_corpus([str(corpus_folder)]).files
                    if (int(hashlib.md5(file.key.encode()).hexdigest(), 16) % 5 == 0) == (split == "validation")]
        tokens = [tokenizer.encode(text) + [tokenizer.eod] for text in expected]
        assert stream.tokens(0, stream.num_tokens).tolist() == sum(tokens, [])
        assert np.diff(stream.document_ends, prepend=0).tolist() == list(map(len, tokens))
        totals = getattr(prepared.manifest, split)
        assert totals.bytes == sum(len(text.encode()) for text in expected) and totals.documents == len(expected) > 1
    assert prepared.tokenizer().fingerprint == tokenizer.fingerprint
    assert prepared.manifest.source_fingerprint == find_corpus([str(corpus_folder)]).fingerprint


def test_megatron_reads_it(tokenizer, corpus_folder, data_root):
    from megatron.core.datasets.indexed_dataset import IndexedDataset

    prepared = prepare(tokenizer, corpus_folder)
    theirs = IndexedDataset(str(prepared.folder / "train"))
    assert len(theirs) == prepared.train.num_documents
    assert np.array_equal(np.concatenate(theirs[:]), prepared.train.tokens(0, prepared.train.num_tokens))
    assert theirs.document_indices.tolist() == list(range(len(theirs) + 1))


def test_the_number_of_workers_changes_nothing(tokenizer, corpus_folder, data_root, monkeypatch, tmp_path):
    monkeypatch.setattr("framework.data.sources.UNIT_BYTES", 700)
    (corpus_folder / "lines.jsonl").write_text(f"{LINE}\n{{\n{LINE}\n" * 5)
    alone = files_in(prepare(tokenizer, corpus_folder, malformed="skip").folder)
    monkeypatch.setenv("UPMIX_DATA", str(tmp_path / "second"))
    assert files_in(prepare(tokenizer, corpus_folder, workers=3, malformed="skip").folder) == alone
    assert json.loads(alone["manifest.json"])["malformed"] == 5


@pytest.mark.parametrize("workers", [1, 2])
def test_a_malformed_line_stops_the_work_where_asked(tokenizer, corpus_folder, data_root, workers, capfd):
    path = corpus_folder / "lines.jsonl"
    path.write_text(f"{LINE}\n{LINE}\nbroken\n")
    with pytest.raises(UserError, match=f"{path}:3: not JSON"):
        prepare(tokenizer, corpus_folder, workers=workers)
    assert not data_root.exists()
    prepared = prepare(tokenizer, corpus_folder, workers=workers, malformed="skip")
    assert prepared.manifest.malformed == 1
    assert f"skipped {path}:3: not JSON" in capfd.readouterr().err


def test_prepared_once_then_found(tokenizer, corpus_folder, data_root, monkeypatch):
    first = prepare(tokenizer, corpus_folder)
    monkeypatch.setattr("framework.data.prepare.atomic_folder", None)
    assert prepare(tokenizer, corpus_folder).folder == first.folder


def test_another_rule_tokenizer_or_source_is_another_folder(tokenizer, corpus_folder, data_root):
    folders = [prepare(tokenizer, corpus_folder).folder]
    folders.append(prepare(tokenizer, corpus_folder, validation_fraction=0.1).folder)
    (corpus_folder / "28.txt").write_text("changed")
    folders.append(prepare(tokenizer, corpus_folder).folder)
    assert len(set(folders)) == 3


KILLED_IN = ["SplitWriter.add", "SplitWriter.close", "storage", "manifest"]


@pytest.mark.parametrize("place", KILLED_IN)
def test_killed_it_leaves_no_final_name_and_then_starts_clean(tokenizer, corpus_folder, data_root, monkeypatch, place):
    undisturbed = files_in(prepare(tokenizer, corpus_folder).folder)
    monkeypatch.setenv("UPMIX_DATA", str(data_root / "killed"))
    child = os.fork()
    if child == 0:
        _prepare_and_be_killed(tokenizer, corpus_folder, place)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    left = [name for name in os.listdir(data_root / "killed") if not name.startswith(".")]
    assert left == []
    (partial,) = (data_root / "killed").glob(".*.partial")
    (partial / "left over").touch()
    folder = prepare(tokenizer, corpus_folder).folder
    assert files_in(folder) == undisturbed
    assert sorted(os.listdir(data_root / "killed")) == sorted([folder.name, f".{folder.name}.lock"])


def _prepare_and_be_killed(tokenizer, corpus_folder, place):
    def die(*arguments, **options):
        os.kill(os.getpid(), signal.SIGKILL)

    try:
        if place == "storage":
            os.fsync = die
        elif place == "manifest":
            from framework.data.prepared import Manifest

            Manifest.to_json = die
        else:
            setattr(writing_module.SplitWriter, place.split(".")[1], die)
        prepare(tokenizer, corpus_folder)
    finally:
        os._exit(1)


SCRIPT = """
import multiprocessing, os, signal, sys
from framework.data import Rules, find_corpus, load_tokenizer, prepare, prepare_corpus, sources

class Writer:
    documents = 0

    def __init__(self, prefix, dtype):
        pass

    def add(self, document):
        Writer.documents += 1
        if Writer.documents == 10:
            with open(sys.argv[3], "w") as pids:
                print(*[child.pid for child in multiprocessing.active_children()], file=pids)
            os.kill(os.getpid(), signal.SIGKILL)

if __name__ == "__main__":
    sources.UNIT_BYTES = 500
    prepare.SplitWriter, prepare.token_type = Writer, lambda vocab_size: "uint16"
    prepare_corpus(find_corpus([sys.argv[1]], "made"), load_tokenizer(sys.argv[2]), Rules(), workers=2, progress=False)
"""


def test_workers_die_with_a_killed_process(tokenizer, corpus_folder, data_root, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    killed = subprocess.run([sys.executable, script, corpus_folder, tokenizer.path, tmp_path / "pids"])
    assert killed.returncode == -signal.SIGKILL
    workers = [int(number) for number in (tmp_path / "pids").read_text().split()]
    assert len(workers) == 2
    deadline = time.monotonic() + 5
    while any(map(_is_alive, workers)) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not any(map(_is_alive, workers))
    assert not [name for name in os.listdir(data_root) if not name.startswith(".")]
    assert prepare(tokenizer, corpus_folder).manifest.train.documents > 20


def _is_alive(process: int) -> bool:
    try:
        with open(f"/proc/{process}/stat") as stat:
            return stat.read().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_two_processes_prepare_once(tokenizer, corpus_folder, data_root, monkeypatch):
    prepare(tokenizer, corpus_folder)  # imports all that the children need
    monkeypatch.setenv("UPMIX_DATA", str(data_root / "both"))
    read_end, write_end = os.pipe()
    fill = sys.modules["framework.data.prepare"]._fill

    def fill_and_tell(*arguments):
        os.write(write_end, b"x")
        time.sleep(0.2)
        fill(*arguments)

    monkeypatch.setattr("framework.data.prepare._fill", fill_and_tell)
    children = []
    for _ in range(3):
        children.append(os.fork())
        if children[-1] == 0:
            try:
                documents = prepare(tokenizer, corpus_folder).manifest.train.documents
            finally:
                os._exit(0 if "documents" in locals() and documents else 1)
    assert [os.waitpid(child, 0)[1] for child in children] == [0, 0, 0]
    os.close(write_end)
    assert os.read(read_end, 10) == b"x"
    os.close(read_end)


def test_a_damaged_folder_is_refused(tokenizer, corpus_folder, data_root):
    folder = prepare(tokenizer, corpus_folder).folder
    manifest = (folder / "manifest.json").read_text()
    for broken, message in [
        (manifest.replace('"format": 1', '"format": 2'), "format 2; this version reads format 1"),
        ("{", "not the manifest"),
        (manifest.replace('"documents": ', '"documents": 1'), "delete the folder"), ("{}", "not the manifest"),
    ]:
        (folder / "manifest.json").write_text(broken)
        with pytest.raises(UserError, match=message):
            open_prepared(folder)
    (folder / "manifest.json").write_text(manifest)
    content = (folder / "train.bin").read_bytes()
    (folder / "train.bin").write_bytes(content[:-2])
    with pytest.raises(UserError, match="train.bin"):
        open_prepared(folder)


def test_a_corpus_that_is_all_held_out_is_refused(tokenizer, corpus_folder, data_root):
    with pytest.raises(UserError, match="none of its 30 documents is left for training"):
        prepare(tokenizer, corpus_folder, validation_fraction=0.9)


def test_large_vocabularies_take_four_bytes_a_token():
    assert writing_module.token_type(4096) is np.uint16 and writing_module.token_type(70_000) is np.int32
