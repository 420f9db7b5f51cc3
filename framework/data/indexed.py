"""Tokens on disk in Megatron's `.bin/.idx` layout, memory-mapped.

The `.bin` holds the tokens of all documents one after the other. The `.idx` holds: `MMIDIDX\\0\\0`, version 1 (u64), a
code of the token type (u8), number of sequences (u64), number of document bounds (u64), then tokens per sequence
(i32), byte offset of each sequence (i64), and the sequence at which each document starts, with the end (i64). This
reader exists because importing megatron-core takes seconds; `prepare` writes with megatron-core's own builder.
"""

import struct
from pathlib import Path

import numpy as np

from framework.errors import UserError

MAGIC = b"MMIDIDX\0\0"
HEADER = struct.Struct("<9sQBQQ")
TOKEN_TYPES = {1: np.uint8, 2: np.int8, 3: np.int16, 4: np.int32, 5: np.int64, 8: np.uint16}


class TokenStream:
    """The concatenated tokens of a data set, or of a run of its documents. Pickles as its path.

    document_ends: int64, token at which each document ends (exclusive), ascending; the last is `num_tokens`.
    Raises UserError if a file is missing, foreign or cut short.
    """

    def __init__(self, prefix: str | Path):
        self.prefix = Path(prefix)
        index_path, tokens_path = Path(f"{self.prefix}.idx"), Path(f"{self.prefix}.bin")
        for path in (index_path, tokens_path):
            if not path.is_file():
                raise UserError(f"data set {self.prefix}: no file {path}; allowed: a prepared folder, or what the "
                                "names of a .bin and an .idx begin with")
        dtype, num_tokens, self.document_ends = _read_index(index_path)
        expected = num_tokens * np.dtype(dtype).itemsize
        if tokens_path.stat().st_size != expected:
            raise UserError(f"{tokens_path}: {tokens_path.stat().st_size} bytes, but its index speaks of {expected}")
        self._tokens = np.memmap(tokens_path, dtype=dtype, mode="r") if num_tokens else np.empty(0, dtype)

    def __reduce__(self):
        return TokenStream, (self.prefix,)

    @property
    def dtype(self) -> np.dtype:
        """Type of a token on disk."""
        return self._tokens.dtype

    @property
    def num_tokens(self) -> int:
        return len(self._tokens)

    @property
    def num_documents(self) -> int:
        return len(self.document_ends)

    def tokens(self, start: int, stop: int) -> np.ndarray:
        """Tokens [start, stop) of the stream: int64, [stop - start]."""
        assert 0 <= start <= stop <= self.num_tokens
        return self._tokens[start:stop].astype(np.int64)

    def documents(self, positions: np.ndarray) -> np.ndarray:
        """The number of the document that each position (any shape) belongs to, int64."""
        return np.searchsorted(self.document_ends, positions, side="right")


def _read_index(path: Path) -> tuple[type, int, np.ndarray]:
    """(token type, number of tokens, document ends in tokens)."""
    content = np.memmap(path, mode="r") if path.stat().st_size else np.empty(0, np.uint8)
    if len(content) < HEADER.size or bytes(content[: len(MAGIC)]) != MAGIC:
        raise UserError(f"{path}: not an index of a Megatron data set")
    _, version, code, num_sequences, num_bounds = HEADER.unpack(bytes(content[: HEADER.size]))
    if version != 1 or code not in TOKEN_TYPES:
        raise UserError(f"{path}: version {version}, token type {code}; read are 1 and {sorted(TOKEN_TYPES)}")
    # Data sets with images carry one more byte per sequence at the end.
    sizes = [HEADER.size + 12 * num_sequences + 8 * num_bounds + extra for extra in (0, num_sequences)]
    if len(content) not in sizes:
        raise UserError(f"{path}: {len(content)} bytes, but its header speaks of {sizes[0]}; cut short or foreign")
    lengths = np.frombuffer(content, np.int32, num_sequences, HEADER.size)
    offsets = np.frombuffer(content, np.int64, num_sequences, HEADER.size + 4 * num_sequences)
    bounds = np.frombuffer(content, np.int64, num_bounds, HEADER.size + 12 * num_sequences)
    ends = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
    itemsize = np.dtype(TOKEN_TYPES[code]).itemsize
    if not np.array_equal(offsets, ends[:-1] * itemsize) or not _are_bounds(bounds, num_sequences):
        raise UserError(f"{path}: its lengths, offsets and documents contradict each other")
    return TOKEN_TYPES[code], int(ends[-1]), ends[bounds[1:]]


def _are_bounds(bounds: np.ndarray, num_sequences: int) -> bool:
    return len(bounds) > 0 and bounds[0] == 0 and bounds[-1] == num_sequences and bool((np.diff(bounds) >= 0).all())


def prefix_of(path: Path) -> Path:
    """What the names of a data set's two files begin with, given that or either file."""
    return path.with_suffix("") if path.suffix in (".bin", ".idx") else path
