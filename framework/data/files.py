"""Which files a corpus consists of: files, folders, globs and Hugging Face data set folders, in a fixed order."""

import glob
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from framework.errors import UserError

TABLE_SUFFIXES = (".parquet", ".arrow")
COMPRESSED_SUFFIXES = (".gz", ".zst")
HEAD_BYTES = 8192


@dataclass(frozen=True)
class File:
    """One file of a corpus.

    key: its path relative to the folder it was found in, with slashes; the split into training and validation hangs
        on it. fallback: the coding of text that is neither UTF-8 nor declares its own. alone: it is the whole corpus.
    """

    path: Path
    key: str
    num_bytes: int
    fallback: str | None = None
    alone: bool = False


def find_files(inputs: Sequence[str]) -> list[File]:
    """Every file under the inputs (paths or globs), sorted by key within each input.

    In a folder, hidden files and binary files (a NUL byte in the first 8 KiB, as git has it) are left out. Raises
    UserError if an input matches nothing.
    """
    found: list[File] = []
    for given in inputs:
        matches = [given] if os.path.exists(given) else sorted(glob.glob(given, recursive=True))
        files = [file for match in matches for file in _files_at(Path(match))]
        if not files:
            raise UserError(f"corpus {given}: no such file, or no text in it; allowed: python_stdlib, a file, a "
                            "folder, or a glob that matches")
        found += files
    if len(found) == 1:
        found = [replace(found[0], alone=True)]
    return found


def folder_files(
    folder: Path, is_left_out: Callable[[str], bool], suffix: str = "", fallback: str | None = None
) -> list[File]:
    """The files under `folder` whose name ends in `suffix`, sorted by key; `is_left_out` judges names of files and
    folders.
    """
    paths = (path for path in _walk(folder, is_left_out) if path.name.endswith(suffix))
    files = [File(path, path.relative_to(folder).as_posix(), path.stat().st_size, fallback) for path in paths]
    return sorted(files, key=lambda file: file.key)


def fingerprint(files: Sequence[File]) -> str:
    """SHA-256 over the files' keys, sizes and times of change: cheap, and other when a file was edited."""
    digest = hashlib.sha256()
    for file in files:
        line = f"{file.key}\0{file.num_bytes}\0{file.path.stat().st_mtime_ns}\n"
        digest.update(line.encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def suffix_of(path: Path) -> str:
    """The suffix that tells the format, that of a compression aside: `.jsonl` for `a.jsonl.gz`."""
    return Path(path.stem).suffix if path.suffix in COMPRESSED_SUFFIXES else path.suffix


def _files_at(path: Path) -> list[File]:
    if not path.is_dir():
        return [File(path, path.name, path.stat().st_size)]
    if (path / "dataset_dict.json").is_file():
        splits = ", ".join(sorted(str(each.parent) for each in path.glob("*/state.json")))
        raise UserError(f"corpus {path}: a Hugging Face data set of several splits; name one of {splits}")
    if (path / "state.json").is_file():
        return _hugging_face_files(path)
    return [file for file in folder_files(path, _is_no_source) if _has_text(file.path)]


def _hugging_face_files(folder: Path) -> list[File]:
    """The tables that `state.json` names; others in the folder are caches of transformations."""
    try:
        names = [entry["filename"] for entry in json.loads((folder / "state.json").read_text())["_data_files"]]
        return [File(folder / name, name, (folder / name).stat().st_size) for name in names]
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise UserError(f"corpus {folder}: not a whole Hugging Face data set folder: {error}") from error


def _walk(folder: Path, is_left_out: Callable[[str], bool]) -> Iterator[Path]:
    for parent, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not is_left_out(name)]
        yield from (Path(parent, name) for name in names if not is_left_out(name) and Path(parent, name).is_file())


def _is_no_source(name: str) -> bool:
    return name.startswith(".") or name in ("__pycache__", "node_modules")


def _has_text(path: Path) -> bool:
    if path.suffix in TABLE_SUFFIXES or path.suffix in COMPRESSED_SUFFIXES:
        return True
    with open(path, "rb") as handle:
        return b"\0" not in handle.read(HEAD_BYTES)
