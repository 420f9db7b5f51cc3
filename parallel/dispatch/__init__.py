"""Carrying tokens to the ranks that hold their experts and back: two bodies of one interface, both by all-to-all."""

from parallel.dispatch.all_to_all import AllToAllDispatcher
from parallel.dispatch.deduplicated import DeduplicatedDispatcher

__all__ = ["AllToAllDispatcher", "DeduplicatedDispatcher"]
