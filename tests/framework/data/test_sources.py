import gzip
import hashlib
import json

import pyarrow
import pyarrow.parquet
import pytest
import zstandard

from framework.data import find_corpus
from framework.data.sources import Document, Holdout, units
from framework.errors import UserError

TEXTS = [f"text {number}\n\u00e9 \u2581" for number in range(7)]


def read(*inputs, fraction=0.0, field="text") -> tuple[list[Document], list[str]]:
    reports: list[str] = []
    files = list(find_corpus([str(given) for given in inputs]).files)
    holdout = Holdout(fraction)
    found = list(units(files, field, reports.append))
    assert sum(unit.num_source_bytes for unit in found) == sum(file.num_bytes for file in files)
    return [document for unit in found for document in unit.documents(holdout, reports.append)], reports


def texts(*inputs, **options) -> list[str]:
    documents, reports = read(*inputs, **options)
    assert not reports
    assert all(document.num_bytes == len(document.text.encode()) for document in documents)
    return [document.text for document in documents]


def json_lines(values, field="text") -> bytes:
    return b"".join(json.dumps({"id": 1, field: value}).encode() + b"\n" for value in values)


def write_arrow(path, values, layout):
    table = pyarrow.table({"id": list(range(len(values))), "text": values})
    opener = pyarrow.ipc.new_stream if layout == "stream" else pyarrow.ipc.new_file
    with opener(str(path), table.schema) as writer:
        writer.write_table(table, max_chunksize=3)


@pytest.mark.parametrize("suffix, compress", [
    ("", bytes), (".gz", gzip.compress), (".zst", zstandard.compress),
    (".zst", lambda content: b"".join(map(zstandard.compress, content.splitlines(True)))),
])
def test_json_lines(tmp_path, suffix, compress, monkeypatch):
    monkeypatch.setattr("framework.data.sources.UNIT_BYTES", 60)
    path = tmp_path / f"a.jsonl{suffix}"
    path.write_bytes(compress(json_lines(TEXTS)))
    assert texts(path) == TEXTS
    path.write_bytes(compress(json_lines(TEXTS, "content")[:-1]))
    assert texts(path, field="content") == TEXTS


def test_parquet(tmp_path, monkeypatch):
    monkeypatch.setattr("framework.data.sources.UNIT_BYTES", 30)
    monkeypatch.setattr("framework.data.tables.BATCH_ROWS", 3)
    table = pyarrow.table({"text": TEXTS, "id": range(7)})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet", row_group_size=4)
    assert texts(tmp_path / "a.parquet") == TEXTS
    pyarrow.parquet.write_table(pyarrow.table({"text": pyarrow.array([], pyarrow.string())}), tmp_path / "b.parquet")
    assert texts(tmp_path / "b.parquet") == []


@pytest.mark.parametrize("layout", ["stream", "file"])
def test_hugging_face_folders(tmp_path, layout):
    for number, part in enumerate([TEXTS[:4], TEXTS[4:]]):
        write_arrow(tmp_path / f"data-{number:05d}-of-00002.arrow", part, layout)
    write_arrow(tmp_path / "cache-0123.arrow", ["of a transformation"], layout)
    names = [{"filename": f"data-{number:05d}-of-00002.arrow"} for number in range(2)]
    (tmp_path / "state.json").write_text(json.dumps({"_data_files": names}))
    (tmp_path / "dataset_info.json").write_text("{}")
    assert texts(tmp_path) == TEXTS
    (tmp_path / "state.json").write_text("{}")
    with pytest.raises(UserError, match="not a whole Hugging Face data set"):
        read(tmp_path)


def test_a_hugging_face_data_set_of_splits_wants_one_named(tmp_path):
    for split in ("train", "test"):
        (tmp_path / split).mkdir()
        (tmp_path / split / "state.json").write_text("{}")
    (tmp_path / "dataset_dict.json").write_text("{}")
    with pytest.raises(UserError, match=f"name one of {tmp_path}/test, {tmp_path}/train"):
        read(tmp_path)


def test_folders_of_source_files(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / ".git").mkdir()
    (tmp_path / "__pycache__").mkdir()
    files = {
        "b.c": "int x;\r\n\t\r", "a.py": "x = 1\n", "sub/Makefile": "all:\n", ".git/config": "no", ".hidden": "no",
        "__pycache__/a.pyc": "no", "picture.png": "\x89PNG\0", "sub/more.jsonl": '{"text": "line"}\n',
    }
    for name, content in files.items():
        (tmp_path / name).write_bytes(content.encode())
    assert texts(tmp_path) == ["x = 1\n", "int x;\r\n\t\r", "all:\n", "line"]


def test_globs_and_several_inputs_keep_their_order(tmp_path):
    for name in "abc":
        (tmp_path / f"{name}.txt").write_text(name)
    assert texts(tmp_path / "[bc].txt", tmp_path / "a.txt") == ["b", "c", "a"]
    with pytest.raises(UserError, match="no such file"):
        read(tmp_path / "*.md")


def test_codings(tmp_path):
    (tmp_path / "a.py").write_bytes("# coding: latin-1\n\u00e9\n".encode("latin-1"))
    (tmp_path / "b.txt").write_bytes(b"one\ntwo\nthr\xe9e\n")
    (tmp_path / "c.py").write_bytes(b"# coding: rot13\n\xe9\n")
    (tmp_path / "d.txt").write_bytes("\ufeffmarked".encode())
    documents, reports = read(tmp_path)
    assert [document.text for document in documents] == ["# coding: latin-1\n\u00e9\n", "\ufeffmarked"]
    assert [document.num_bytes for document in documents] == [20, 9]
    assert reports == [
        f"{tmp_path}/b.txt:3: not UTF-8 (byte 0xe9)",
        f"{tmp_path}/c.py:1: not in the coding that it declares, rot13",
    ]


MALFORMED = [
    (b"{", "not JSON"), (b"[1]", "a JSON object is needed"), (b'{"txt": ""}', "no field 'text'; there are: 'txt'"),
    (b'{"text": 1}', "holds no text but int"), (b'{"text": null}', "holds no text but NoneType"),
    (b'{"text": "\\ud800"}', "surrogate"), (b'{"text": "\xff"}', "not JSON"), (b"[" * 100000, "not JSON"),
]


@pytest.mark.parametrize("line, message", MALFORMED)
def test_malformed_lines_are_told_with_their_number_and_passed_over(tmp_path, line, message, monkeypatch):
    monkeypatch.setattr("framework.data.sources.UNIT_BYTES", 40)
    path = tmp_path / "a.jsonl"
    path.write_bytes(json_lines(TEXTS[:3]) + b"\n" + line + b"\n" + json_lines(TEXTS[3:]))
    documents, reports = read(path)
    assert [document.text for document in documents] == TEXTS
    assert len(reports) == 1 and reports[0].startswith(f"{path}:5: ") and message in reports[0]


def test_rows_without_text_are_malformed(tmp_path):
    pyarrow.parquet.write_table(pyarrow.table({"text": ["a", None, "b"]}), tmp_path / "a.parquet")
    documents, reports = read(tmp_path / "a.parquet")
    assert [document.text for document in documents] == ["a", "b"]
    assert reports == [f"{tmp_path}/a.parquet:2: column 'text' holds no text but NoneType"]


@pytest.mark.parametrize("suffix, compress", [(".gz", gzip.compress), (".zst", zstandard.compress)])
def test_a_compressed_file_that_is_cut_short_is_malformed_where_it_ends(tmp_path, suffix, compress):
    path = tmp_path / f"a.jsonl{suffix}"
    whole = compress(json_lines([hashlib.sha256(bytes([number])).hexdigest() for number in range(200)]))
    path.write_bytes(whole[: len(whole) // 2])
    documents, reports = read(path)
    # A last line may be cut as well.
    assert len(documents) < 200 and "cannot be read" in reports[0]
    assert reports[0].startswith(f"{path}:")


def test_files_that_are_no_tables_and_columns_that_are_not_there_are_refused(tmp_path):
    for name in ("a.parquet", "a.arrow"):
        (tmp_path / name).write_bytes(b"neither")
        with pytest.raises(UserError, match=f"{name}: cannot be read as"):
            read(tmp_path / name)
    pyarrow.parquet.write_table(pyarrow.table({"body": ["a"], "id": [1]}), tmp_path / "a.parquet")
    write_arrow(tmp_path / "a.arrow", ["a"], "stream")
    with pytest.raises(UserError, match="no column 'text'; there are: body, id"):
        read(tmp_path / "a.parquet")
    with pytest.raises(UserError, match="no column 'body'; there are: id, text"):
        read(tmp_path / "a.arrow", field="body")


def test_the_split_hangs_on_the_key_alone(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(json_lines(map(str, range(400))))
    documents, _ = read(tmp_path / "a.jsonl", fraction=0.1)
    for number, document in enumerate(documents, 1):
        key = f"a.jsonl:{number}"
        assert document.held_out == (int(hashlib.md5(key.encode()).hexdigest(), 16) % 10 == 0)
    assert 20 < sum(document.held_out for document in documents) < 60


def test_a_lone_text_is_cut_at_a_line_end(tmp_path):
    text = "".join(f"line {number} \u00e9\n" for number in range(100))
    (tmp_path / "a.txt").write_text(text)
    documents, _ = read(tmp_path / "a.txt", fraction=0.1)
    assert [document.held_out for document in documents] == [False, True]
    assert "".join(document.text for document in documents) == text and documents[0].text.endswith("\n")
    assert [document.num_bytes for document in documents] == [len(document.text.encode()) for document in documents]
    assert 0.08 < documents[1].num_bytes / len(text.encode()) < 0.12
