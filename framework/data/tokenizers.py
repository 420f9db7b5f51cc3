"""Tokenizers behind one small interface: SentencePiece `.model` and Hugging Face `tokenizer.json`."""

import hashlib
import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Protocol

from framework.errors import UserError

# SentencePiece writes a space as U+2581 inside its pieces, so a U+2581 of the text would come back as a space.
SPACE_MARK = "\u2581"
ALLOWED = "a SentencePiece .model or a Hugging Face tokenizer.json"
BLOCK_CHARACTERS = 16384
FIRST_LINE_END = re.compile(r"(?<!\n)\n")
END_OF_DOCUMENT_NAMES = (
    "<|endoftext|>", "<|end_of_text|>", "<|eod|>", "<eod>", "<eos>", "</s>", "<|eot_id|>", "<|im_end|>", "[SEP]",
)


class Tokenizer(Protocol):
    """Text to token ids and back.

    `eod` is the id that ends a document, which no text encodes to; `fingerprint` is the SHA-256 of the file.
    """

    path: Path
    vocab_size: int
    eod: int
    fingerprint: str

    def encode(self, text: str) -> list[int]: ...

    def decode(self, ids: Iterable[int]) -> str: ...

    def piece(self, token: int) -> str: ...


def load_tokenizer(path: str | Path) -> Tokenizer:
    """The tokenizer in a file: SentencePiece if it ends in `.model`, Hugging Face if it ends in `.json`.

    Raises UserError for a missing, foreign or damaged file, and for a tokenizer without an end-of-document token.
    """
    path = Path(path)
    kinds = {".model": SentencePieceTokenizer, ".json": HuggingFaceTokenizer}
    if path.suffix not in kinds:
        raise UserError(f"tokenizer {path}: given another suffix; allowed: {ALLOWED}")
    if not path.is_file():
        raise UserError(f"tokenizer {path}: no such file; allowed: {ALLOWED}")
    return kinds[path.suffix](path)


class SentencePieceTokenizer:
    """A SentencePiece model.

    With byte fallback and no dummy prefix (as `train_tokenizer` makes them) decode(encode(text)) == text for every
    text: a U+2581 is then spelled in bytes, which SentencePiece itself would turn into a space.
    """

    def __init__(self, path: Path):
        from sentencepiece import SentencePieceProcessor

        self.path, content = path, path.read_bytes()
        try:
            # No bytes at all would count as no model given, which fails later.
            self._model = SentencePieceProcessor(model_proto=content or b"\0")
        except RuntimeError as error:
            raise UserError(f"tokenizer {path}: not a SentencePiece model; allowed: {ALLOWED}") from error
        self.fingerprint = hashlib.sha256(content).hexdigest()
        self.vocab_size = self._model.vocab_size()
        self.eod = self._model.eos_id()
        if self.eod < 0:
            raise UserError(f"tokenizer {path}: it has no end-of-sentence piece to end documents with")
        self._space_mark_bytes = [self._model.piece_to_id(f"<0x{byte:02X}>") for byte in SPACE_MARK.encode()]
        has_bytes = self._model.unk_id() not in self._space_mark_bytes
        self._exact = has_bytes and not self._model.encode_as_pieces("a")[0].startswith(SPACE_MARK)
        self._ends_at_lines = self._exact and not self._has_piece_across_lines()

    def encode(self, text: str) -> list[int]:
        if not self._exact:
            return self._model.encode(text)
        ids: list[int] = []
        for number, part in enumerate(text.split(SPACE_MARK)):
            if number:
                ids += self._space_mark_bytes
            for block in self._blocks(part):
                ids += self._model.encode(block)
        return ids

    def decode(self, ids: Iterable[int]) -> str:
        return self._model.decode([token for token in map(int, ids) if token < self.vocab_size])

    def piece(self, token: int) -> str:
        return self._model.id_to_piece(int(token))

    def _has_piece_across_lines(self) -> bool:
        return any("\n" in self.piece(token).lstrip("\n") for token in range(self.vocab_size))

    def _blocks(self, text: str) -> Iterator[str]:
        # No piece holds a line end after other characters, so cutting before line ends changes no token, and it
        # bounds SentencePiece's memory and its more than linear time.
        start = 0
        while self._ends_at_lines and (cut := FIRST_LINE_END.search(text, start + BLOCK_CHARACTERS)):
            yield text[start:cut.start()]
            start = cut.start()
        yield text[start:]


class HuggingFaceTokenizer:
    """A `tokenizer.json`. Its end-of-document token is `eos_token` of the `tokenizer_config.json` beside it, else the
    first of `END_OF_DOCUMENT_NAMES` that it knows. Special tokens spelled out in a text are encoded as plain text.
    """

    def __init__(self, path: Path):
        from tokenizers import Tokenizer as Engine

        self.path, content = path, path.read_bytes()
        try:
            self._engine = Engine.from_str(content.decode())
        except Exception as error:  # the library raises plain Exception
            raise UserError(f"tokenizer {path}: not a Hugging Face tokenizer.json; allowed: {ALLOWED}") from error
        self._engine.encode_special_tokens = True
        self._engine.no_truncation()
        self._engine.no_padding()
        self.fingerprint = hashlib.sha256(content).hexdigest()
        self.vocab_size = max(self._engine.get_vocab(with_added_tokens=True).values()) + 1
        self.eod = self._find_end_of_document()

    def encode(self, text: str) -> list[int]:
        return self._engine.encode(text, add_special_tokens=False).ids

    def decode(self, ids: Iterable[int]) -> str:
        return self._engine.decode([token for token in map(int, ids) if token < self.vocab_size])

    def piece(self, token: int) -> str:
        return self._engine.id_to_token(int(token)) or ""

    def _find_end_of_document(self) -> int:
        for name in (*_configured_end_names(self.path), *END_OF_DOCUMENT_NAMES):
            token = self._engine.token_to_id(name)
            if token is not None:
                return token
        raise UserError(
            f"tokenizer {self.path}: no end-of-document token; give eos_token in a tokenizer_config.json beside it, "
            f"or one of {', '.join(END_OF_DOCUMENT_NAMES)}"
        )


def _configured_end_names(path: Path) -> list[str]:
    config = path.with_name("tokenizer_config.json")
    if not config.is_file():
        return []
    try:
        name = json.loads(config.read_text()).get("eos_token")
    except (ValueError, AttributeError) as error:
        raise UserError(f"tokenizer {config}: not a JSON object") from error
    name = name.get("content") if isinstance(name, dict) else name
    return [name] if isinstance(name, str) else []
