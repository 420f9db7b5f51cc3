"""A small tokenizer, and a root of prepared data that is the test's own."""

from pathlib import Path

import pytest

from framework.data import find_corpus, train_tokenizer

WORDS = "def return self import class value number layer token model expert router state chunk while".split()


def python_like(num_lines: int, start: int = 0) -> str:
    """Deterministic text with indents, tabs, digits and characters outside ASCII."""
    lines = []
    for number in range(start, start + num_lines):
        words = [WORDS[(number * 7 + place * place * 3) % len(WORDS)] for place in range(2 + number % 7)]
        end = "\t# \u00e9\u4e2d" if number % 5 == 0 else "):"
        lines.append("\n\n" * (number % 7 == 0) + "    " * (number % 4) + " ".join(words) + f"_{number}({end}")
    return "\n".join(lines) + "\n"


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    for number in range(20):
        (folder / f"{number}.txt").write_text(python_like(60, number * 60))
    return train_tokenizer(find_corpus([str(folder)]), 600, folder / "small.model", report=pytest.fail)


@pytest.fixture
def data_root(tmp_path, monkeypatch) -> Path:
    root = tmp_path / "data_root"
    monkeypatch.setenv("UPMIX_DATA", str(root))
    return root


@pytest.fixture
def corpus_folder(tmp_path) -> Path:
    """30 text files, the last of them empty."""
    folder = tmp_path / "texts"
    (folder / "inner").mkdir(parents=True)
    for number in range(29):
        path = folder / ("inner" if number % 2 else "") / f"{number:02d}.txt"
        path.write_text(python_like(5 + number * 3, number))
    (folder / "empty.txt").write_text("")
    return folder
