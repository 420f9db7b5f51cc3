"""Text given on the command line, and what to do about text that cannot be read."""

from enum import StrEnum

import typer


class Malformed(StrEnum):
    skip = "skip"
    fail = "fail"


def utf8(text: str | None) -> str | None:
    """Typer's callback of an argument to encode: bytes that are not UTF-8 reach Python as lone surrogates."""
    try:
        (text or "").encode()
    except UnicodeEncodeError:
        raise typer.BadParameter("not UTF-8; allowed: text in UTF-8") from None
    return text
