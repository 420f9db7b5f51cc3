"""Bytes to text: codings, and what counts as malformed."""

import io
import tokenize

from framework.data.files import File


class Malformed(Exception):
    """A record or file that cannot be read; `line` is where, in a text file."""

    def __init__(self, message: str, line: int = 1):
        super().__init__(message)
        self.line = line


def decoded(content: bytes, file: File) -> str:
    """Text of a file: UTF-8, or the coding that it declares (PEP 263), or `file.fallback`; no newline translation.

    Raises Malformed, with the line, if it is none of these.
    """
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        coding = _declared_coding(content) or file.fallback
        if coding is None:
            line = content.count(b"\n", 0, error.start) + 1
            raise Malformed(f"not UTF-8 (byte 0x{content[error.start]:02x})", line) from error
    try:
        return valid_text(content.decode(coding), "the file")
    except (UnicodeError, LookupError, Malformed) as error:
        if file.fallback is None:
            raise Malformed(f"not in the coding that it declares, {coding}") from error
        return content.decode(file.fallback)


def valid_text(value: object, where: str) -> str:
    """`value`, if it is a string that UTF-8 can express; else Malformed."""
    if not isinstance(value, str):
        raise Malformed(f"{where} holds no text but {type(value).__name__}")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise Malformed(f"{where} holds half a surrogate pair, which is no character") from error
    return value


def _declared_coding(content: bytes) -> str | None:
    try:
        coding, _ = tokenize.detect_encoding(io.BytesIO(content).readline)
    except SyntaxError:
        return None
    return None if coding in ("utf-8", "utf-8-sig") else coding
