"""A corpus: named files of raw text. Built in is the text of the running Python's standard library."""

import sysconfig
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from framework.data.files import File, find_files, fingerprint, folder_files
from framework.errors import UserError
from framework.files import is_plain_name

BUILT_IN = ("python_stdlib",)
INSTALLED = frozenset({"site-packages", "dist-packages", "__pycache__"})


@dataclass(frozen=True)
class Corpus:
    """Files to read, in a fixed order, and a fingerprint that changes when they do."""

    name: str
    files: tuple[File, ...]
    fingerprint: str

    @property
    def num_bytes(self) -> int:
        """Of the files on disk."""
        return sum(file.num_bytes for file in self.files)


def find_corpus(inputs: Sequence[str], name: str | None = None) -> Corpus:
    """The corpus of a built-in name, or of files, folders and globs.

    Raises UserError if an input matches nothing, or the name is none for a folder.
    """
    if name is not None and not is_plain_name(name):
        raise UserError(f"corpus name {name!r}: no name for a folder; allowed: a plain one, without '/'")
    if len(inputs) == 1 and inputs[0] in BUILT_IN:
        files = python_stdlib()
    else:
        files = find_files(inputs)
    return Corpus(name or _name_of(inputs), tuple(files), fingerprint(files))


def python_stdlib() -> list[File]:
    """Every `.py` file of the running Python's standard library, without installed packages.

    Files that are neither UTF-8 nor say what they are (there are some, for tests) are read as Latin-1, so that all
    bytes count.
    """
    folder = Path(sysconfig.get_path("stdlib"))
    files = folder_files(folder, INSTALLED.__contains__, ".py", fallback="latin-1")
    if not files:
        raise UserError(f"corpus python_stdlib: no .py files in {folder}; this Python comes without its sources")
    return files


def _name_of(inputs: Sequence[str]) -> str:
    """A name for a folder: the last part of the first input, with nothing a file name cannot hold."""
    last = Path(inputs[0]).name.split(".")[0]
    return "".join(letter if letter.isalnum() or letter in "-_" else "_" for letter in last) or "corpus"
