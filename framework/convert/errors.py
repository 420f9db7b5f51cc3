"""Errors of one line, where torch.distributed.checkpoint makes its own of them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch.distributed.checkpoint.api import CheckpointException

from framework.errors import UserError


@contextmanager
def plain_errors() -> Iterator[None]:
    """Within it a UserError that making a tensor raised comes out as itself."""
    try:
        yield
    except CheckpointException as error:
        for cause, _ in error.failures.values():
            if isinstance(cause, UserError):
                raise cause from None
        raise
