"""Content of files that may be compressed."""

import gzip
import io
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from framework.data.decoding import Malformed

COMPRESSED_CHUNK = 1 << 16


def raw_bytes(path: Path) -> bytes:
    """A file's content, decompressed if it ends in `.gz` or `.zst`."""
    with _readable(), _opened(path) as (stream, _):
        return stream.read()


def lines_of(path: Path) -> Iterator[tuple[bytes, int]]:
    """Lines, each with the number of bytes of the file on disk that have been read so far."""
    with _readable(), _opened(path) as (stream, file):
        for line in stream:
            yield line, file.tell()


class _ZstandardStream(io.RawIOBase):
    """Content of a Zstandard file of any number of frames. The library's own stream takes a cut file for a whole one;
    this one raises EOFError.
    """

    def __init__(self, file: BinaryIO):
        self._file = file
        self._frame = None
        self._rest = b""
        self._content = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        while not self._content:
            compressed = self._rest or self._file.read(COMPRESSED_CHUNK)
            if not compressed:
                if self._frame is not None:
                    raise EOFError("the file ends within a frame")
                return 0
            self._content = memoryview(self._decompress(compressed))
        taken, self._content = self._content[: len(buffer)], self._content[len(buffer) :]
        buffer[: len(taken)] = taken
        return len(taken)

    def _decompress(self, compressed: bytes) -> bytes:
        import zstandard

        if self._frame is None:
            self._frame = zstandard.ZstdDecompressor().decompressobj()
        content = self._frame.decompress(compressed)
        self._rest = self._frame.unused_data
        if self._frame.eof:
            self._frame = None
        return content


@contextmanager
def _opened(path: Path) -> Iterator[tuple[BinaryIO, BinaryIO]]:
    """(stream of content, the file on disk under it)."""
    with open(path, "rb") as file:
        if path.suffix == ".gz":
            yield gzip.open(file), file
        elif path.suffix == ".zst":
            yield io.BufferedReader(_ZstandardStream(file), COMPRESSED_CHUNK), file
        else:
            yield file, file


@contextmanager
def _readable() -> Iterator[None]:
    """What the system and the libraries raise for a file that is damaged or closed to us, as Malformed."""
    try:
        yield
    except (EOFError, OSError, zlib.error) as error:
        raise Malformed(f"cannot be read: {error}") from error
    except Exception as error:
        if type(error).__name__ != "ZstdError":
            raise
        raise Malformed(f"cannot be read: {error}") from error
