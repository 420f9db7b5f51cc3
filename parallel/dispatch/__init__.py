"""Carrying tokens to the ranks that hold their experts and back: bodies of one interface.

By all-to-all everywhere, plain or deduplicated; or through memory that the GPUs of a machine share, either way.
"""

from parallel.dispatch.all_to_all import AllToAllDispatcher
from parallel.dispatch.deduplicated import DeduplicatedDispatcher
from parallel.dispatch.symmetric_memory import SymmetricMemory, SymmetricMemoryDispatcher

__all__ = ["AllToAllDispatcher", "DeduplicatedDispatcher", "SymmetricMemory", "SymmetricMemoryDispatcher"]
