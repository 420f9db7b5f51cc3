"""Memory that is freed goes back to the system, so that a model larger than it may pass through."""

import ctypes
from contextlib import suppress

MMAP_THRESHOLD = -3  # M_MMAP_THRESHOLD of glibc's malloc.h
LARGE = 2**20
"""Bytes of a block that gets pages of its own."""


def give_back_large_blocks() -> None:
    """For the rest of this process: glibc otherwise raises its threshold as blocks come and go, and keeps holes between
    small ones, several times the largest tensor. Does nothing where there is no glibc.
    """
    with suppress(AttributeError, OSError):
        ctypes.CDLL(None).mallopt(MMAP_THRESHOLD, LARGE)
