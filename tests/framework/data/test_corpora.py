import hashlib
import pathlib
import sysconfig

import pytest

from framework.data import find_corpus
from framework.data.sources import Holdout, units


@pytest.fixture(scope="module")
def corpus():
    return find_corpus(["python_stdlib"])


def test_the_standard_library_is_all_of_its_source_files(corpus):
    root = pathlib.Path(sysconfig.get_path("stdlib"))
    expected = {
        path for path in root.rglob("*.py")
        if not {"site-packages", "dist-packages", "__pycache__"} & set(path.relative_to(root).parts)
    }
    assert {file.path for file in corpus.files} == expected
    assert len(expected) > 500
    assert [file.key for file in corpus.files] == sorted(path.relative_to(root).as_posix() for path in expected)


def test_its_validation_set_is_one_file_in_twenty_and_every_byte_counts(corpus):
    root = pathlib.Path(sysconfig.get_path("stdlib"))
    expected = {
        file.key: (root / file.key).stat().st_size for file in corpus.files
        if int(hashlib.md5(file.key.encode()).hexdigest(), 16) % 20 == 0
    }
    held_out = []
    for unit in units(list(corpus.files), "text", pytest.fail):
        held_out += [document for document in unit.documents(Holdout(0.05), pytest.fail) if document.held_out]
    assert len(held_out) == len(expected) > 20
    assert sum(document.num_bytes for document in held_out) == sum(expected.values())


def test_a_changed_file_changes_the_fingerprint(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("one")
    fingerprints = {find_corpus([str(tmp_path)]).fingerprint, find_corpus([str(tmp_path)]).fingerprint}
    assert len(fingerprints) == 1
    path.write_text("two!")
    (tmp_path / "b.txt").write_text("")
    fingerprints.add(find_corpus([str(path)]).fingerprint)
    fingerprints.add(find_corpus([str(tmp_path)]).fingerprint)
    assert len(fingerprints) == 3


@pytest.mark.parametrize("given, name", [("texts/my corpus.v1.jsonl", "my_corpus"), ("a/b", "b")])
def test_a_corpus_is_named_after_its_input(tmp_path, given, name):
    path = tmp_path / given
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("{}")
    assert find_corpus([str(path)]).name == name
