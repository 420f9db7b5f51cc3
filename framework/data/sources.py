"""Raw text to documents: which files there are, and units of work that a worker turns into documents.

The process that prepares a corpus reads `units` (cheap: paths, raw lines, columns of a table); its workers call
`unit.documents` (decoding, JSON). Memory is bounded by a unit, about `UNIT_BYTES`, or by the longest document.
"""

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from framework.data.compression import lines_of, raw_bytes
from framework.data.decoding import Malformed, decoded, valid_text
from framework.data.files import TABLE_SUFFIXES, File, suffix_of
from framework.data.tables import table_texts

UNIT_BYTES = 1 << 20

Report = Callable[[str], None]


@dataclass(frozen=True)
class Document:
    """A text, and whether it is held out for validation. `num_bytes` is its size in the file that it came from, or
    in UTF-8 where it is a field of a record."""

    text: str
    num_bytes: int
    held_out: bool


@dataclass(frozen=True)
class Holdout:
    """Documents whose key's MD5 is 0 modulo round(1 / fraction) are for validation; none if fraction is 0."""

    fraction: float

    def __call__(self, key: str) -> bool:
        if self.fraction == 0:
            return False
        digest = hashlib.md5(key.encode("utf-8", "surrogateescape"), usedforsecurity=False).hexdigest()
        return int(digest, 16) % round(1 / self.fraction) == 0


@dataclass(frozen=True)
class WholeFiles:
    """Files that are one document each; the key is the file's path relative to the folder it was found in."""

    files: tuple[File, ...]
    num_source_bytes: int

    def documents(self, holdout: Holdout, report: Report) -> Iterator[Document]:
        for file in self.files:
            try:
                content = raw_bytes(file.path)
                text = decoded(content, file)
            except Malformed as error:
                report(f"{file.path}:{error.line}: {error}")
                continue
            if file.alone and holdout.fraction:
                yield from _cut(text, content, holdout.fraction)
            else:
                yield Document(text, len(content), holdout(file.key))


@dataclass(frozen=True)
class Lines:
    """JSON lines of one file; the key of a document is `path:line`."""

    file: File
    field: str
    first_line: int
    lines: tuple[bytes, ...]
    num_source_bytes: int

    def documents(self, holdout: Holdout, report: Report) -> Iterator[Document]:
        for number, line in enumerate(self.lines, self.first_line):
            if not line.strip():
                continue
            try:
                text = self._text(line)
            except Malformed as error:
                report(f"{self.file.path}:{number}: {error}")
                continue
            yield Document(text, len(text.encode()), holdout(f"{self.file.key}:{number}"))

    def _text(self, line: bytes) -> str:
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise Malformed(f"not JSON: {error}") from error
        if not isinstance(record, dict):
            raise Malformed(f"a JSON object is needed, not {type(record).__name__}")
        if self.field not in record:
            raise Malformed(f"no field '{self.field}'; there are: {', '.join(map(repr, record)) or 'none'}")
        return valid_text(record[self.field], f"field '{self.field}'")


@dataclass(frozen=True)
class Rows:
    """Rows of a table's text column; the key of a document is `path:row`, rows counted from 1."""

    file: File
    field: str
    first_row: int
    values: tuple[object, ...]
    num_source_bytes: int

    def documents(self, holdout: Holdout, report: Report) -> Iterator[Document]:
        for number, value in enumerate(self.values, self.first_row):
            try:
                text = valid_text(value, f"column '{self.field}'")
            except Malformed as error:
                report(f"{self.file.path}:{number}: {error}")
                continue
            yield Document(text, len(text.encode()), holdout(f"{self.file.key}:{number}"))


Unit = WholeFiles | Lines | Rows


def units(files: list[File], field: str, report: Report) -> Iterator[Unit]:
    """All of the files' work in their order. `report` hears of compressed files that end early."""
    pending: list[File] = []
    for file in files:
        kind = suffix_of(file.path)
        if kind == ".jsonl" or kind in TABLE_SUFFIXES:
            yield from _whole_files(pending)
            pending = []
            yield from _line_units(file, field, report) if kind == ".jsonl" else _row_units(file, field)
        else:
            pending.append(file)
            if sum(each.num_bytes for each in pending) >= UNIT_BYTES:
                yield from _whole_files(pending)
                pending = []
    yield from _whole_files(pending)


def _whole_files(files: list[File]) -> Iterator[WholeFiles]:
    if files:
        yield WholeFiles(tuple(files), sum(file.num_bytes for file in files))


def _line_units(file: File, field: str, report: Report) -> Iterator[Lines]:
    batch: list[bytes] = []
    batch_bytes, first_line, done_bytes = 0, 1, 0
    try:
        for line, position in lines_of(file.path):
            batch.append(line)
            batch_bytes += len(line)
            if batch_bytes >= UNIT_BYTES:
                yield Lines(file, field, first_line, tuple(batch), position - done_bytes)
                first_line, done_bytes = first_line + len(batch), position
                batch, batch_bytes = [], 0
    except Malformed as error:
        report(f"{file.path}:{first_line + len(batch)}: {error}")
    yield Lines(file, field, first_line, tuple(batch), file.num_bytes - done_bytes)


def _row_units(file: File, field: str) -> Iterator[Rows]:
    batch: list[object] = []
    batch_bytes, first_row, done_bytes = 0, 1, 0
    for values, position in table_texts(file.path, field):
        for value in values:
            batch.append(value)
            batch_bytes += len(value) if isinstance(value, str) else 0
            if batch_bytes >= UNIT_BYTES:
                yield Rows(file, field, first_row, tuple(batch), position - done_bytes)
                first_row, done_bytes = first_row + len(batch), position
                batch, batch_bytes = [], 0
    yield Rows(file, field, first_row, tuple(batch), file.num_bytes - done_bytes)


def _cut(text: str, content: bytes, fraction: float) -> Iterator[Document]:
    """A corpus of one text has no documents to hold out: its last share is cut off at a line end."""
    wanted = int(len(text) * (1 - fraction))
    place = text.rfind("\n", 0, wanted) + 1 or wanted
    num_tail_bytes = min(len(text[place:].encode()), len(content))
    yield Document(text[:place], len(content) - num_tail_bytes, False)
    yield Document(text[place:], num_tail_bytes, True)
