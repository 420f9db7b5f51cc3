"""Names of cells: the fields that a cell states, by the shortest ends of their keys, and short texts of the values."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from framework.sweep.axes import Assignment
from framework.sweep.values import assign, digest

LONGEST = 120
"""Characters of a name: folders take 255 bytes, and slides and logs add to it."""


def cell_names(assignments: Sequence[Assignment]) -> list[str]:
    """One plain folder name for each assignment, all different where the assignments are.

    `expansion_rate_4-lr_2^-9.5-seed_0`; a name that is too long, or that two share, ends in a hash of all its values.
    """
    tails = key_tails(list(dict.fromkeys(key for assignment in assignments for key in assignment)))
    plain = ["-".join(f"{tails[key]}_{value.label}" for key, value in assignment.items()) for assignment in assignments]
    often = Counter(plain)
    return [name if often[name] == 1 and len(name) <= LONGEST else f"{name[:LONGEST - 9]}-{_hash(assignment)}"
            for name, assignment in zip(plain, assignments, strict=True)]


def key_tails(keys: Sequence[str]) -> dict[str, str]:
    """Of each dotted key the shortest end, of whole words, that no other key has."""
    ends = Counter(end for key in keys for end in _ends(key))
    return {key: _folder_safe(next((end for end in _ends(key) if ends[end] == 1), key)) for key in keys}


def _ends(key: str) -> list[str]:
    words = key.split(".")
    return [".".join(words[-count:]) for count in range(1, len(words) + 1)]


def _folder_safe(text: str) -> str:
    return "".join(letter if letter.isascii() and letter.isalnum() or letter in "._" else "_" for letter in text)


def _hash(assignment: Assignment) -> str:
    return digest("\n".join(assign(key, value.given) for key, value in assignment.items()))
