"""The mistake of a user, told in one line."""

from collections.abc import Iterable
from difflib import get_close_matches


class UserError(ValueError):
    """Says what was given, what is allowed, and where; the command line prints it alone and exits with 2."""


def nearest(word: str, allowed: Iterable[str]) -> str:
    """"; nearest: X" for the valid word that resembles a wrong one most, or nothing."""
    matches = get_close_matches(word, list(allowed), n=1, cutoff=0.6)
    return f"; nearest: {matches[0]}" if matches else ""
