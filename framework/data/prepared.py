"""A prepared corpus on disk: `train` and `validation` token streams, the tokenizer, and a manifest."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from framework.data.indexed import TokenStream
from framework.data.tokenizers import Tokenizer, load_tokenizer
from framework.errors import UserError

FORMAT = 1
MANIFEST = "manifest.json"
SPLITS = ("train", "validation")


@dataclass(frozen=True)
class Totals:
    """Of one split. Bytes are those of the documents' text; tokens count each document's end-of-document token."""

    documents: int
    tokens: int
    bytes: int


@dataclass(frozen=True)
class Manifest:
    """What a prepared folder holds, and from what it was made."""

    name: str
    format: int
    tokenizer: str
    tokenizer_fingerprint: str
    source_fingerprint: str
    vocab_size: int
    eod: int
    validation_fraction: float
    malformed: int
    train: Totals
    validation: Totals

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=2) + "\n"


@dataclass(frozen=True)
class Prepared:
    """An open prepared folder."""

    folder: Path
    manifest: Manifest
    train: TokenStream
    validation: TokenStream

    def tokenizer(self) -> Tokenizer:
        return load_tokenizer(self.folder / self.manifest.tokenizer)


def is_prepared(folder: Path) -> bool:
    return (folder / MANIFEST).is_file()


def open_prepared(folder: Path) -> Prepared:
    """Raises UserError if the folder is of another format, or a file in it is missing, foreign or cut short."""
    manifest = _read_manifest(folder / MANIFEST)
    streams = {split: TokenStream(folder / split) for split in SPLITS}
    for split, stream in streams.items():
        totals = getattr(manifest, split)
        if (stream.num_documents, stream.num_tokens) != (totals.documents, totals.tokens):
            raise UserError(
                f"{folder / split}: {stream.num_documents} documents, {stream.num_tokens} tokens, but {MANIFEST} says "
                f"{totals.documents} and {totals.tokens}; delete the folder to have it prepared again"
            )
    return Prepared(folder, manifest, **streams)


def _read_manifest(path: Path) -> Manifest:
    try:
        fields = json.loads(path.read_text())
        found = fields["format"]
        if found == FORMAT:
            totals = {split: Totals(**fields[split]) for split in SPLITS}
            return Manifest(**{**fields, **totals})
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: not the manifest of a prepared corpus, or damaged; allowed: delete the folder to "
                        "have it prepared again") from error
    raise UserError(f"{path}: format {found}; this version reads format {FORMAT}")
