"""Errors of one line, where torch.distributed.checkpoint makes its own of them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from torch.distributed.checkpoint.api import CheckpointException

from framework.errors import UserError

WRITER = "inline_container"
"""The part of PyTorch that writes a tensor's bytes, and says nothing but its name where the system takes no more."""


@contextmanager
def plain_errors(path: Path) -> Iterator[None]:
    """Within it a UserError that making a tensor raised comes out as itself, and a failed write of `path` as one."""
    try:
        yield
    except CheckpointException as error:
        causes = [cause for cause, _ in error.failures.values()]
        for cause in causes:
            if isinstance(cause, UserError):
                raise cause from None
        for cause in causes:
            if isinstance(cause, OSError) or WRITER in str(cause):
                why = cause.strerror if isinstance(cause, OSError) else "the system took no more bytes"
                raise UserError(f"{path}: cannot be written ({why}); allowed: more room, or another place") from None
        raise
