"""What glibc does with freed memory, which suits neither a model that passes through nor steps that repeat."""

import ctypes
from contextlib import suppress

# Parameters of glibc's malloc.h.
TRIM_THRESHOLD, TOP_PAD, MMAP_THRESHOLD = -1, -2, -3

LARGE = 2**20
"""Bytes of a block that gets pages of its own."""
LARGEST_KEPT = 2**25
"""Bytes of the largest block that glibc can keep."""
KEPT = 2**30
"""Bytes at the heap's end that are not given back."""


def give_back_large_blocks() -> None:
    """For the rest of this process freed blocks go back to the system, so that a model larger than memory may pass.

    glibc otherwise raises its threshold as blocks come and go, and keeps holes between small ones, several times the
    largest tensor. Does nothing where there is no glibc.
    """
    _set({MMAP_THRESHOLD: LARGE})


def keep_freed_blocks() -> None:
    """For the rest of this process freed blocks of up to LARGEST_KEPT wait for the next use.

    Every step of training on a CPU frees what the next one allocates; given back, its pages are cleared and faulted in
    again, a few percent of a step. Does nothing where there is no glibc.
    """
    _set({MMAP_THRESHOLD: LARGEST_KEPT, TRIM_THRESHOLD: KEPT, TOP_PAD: LARGEST_KEPT})


def _set(values: dict[int, int]) -> None:
    with suppress(AttributeError, OSError):
        for parameter, value in values.items():
            ctypes.CDLL(None).mallopt(parameter, value)
