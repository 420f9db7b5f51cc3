"""One writer to a run folder. The kernel drops the lock when its holder dies, however it dies."""

import fcntl
import time
from pathlib import Path
from typing import IO

from framework.errors import UserError

PATIENCE_SECONDS = 3.0


def lock_folder(path: Path) -> IO[str]:
    """Hold the folder's lock until the returned file is closed or the process ends.

    Ranks of a run that was killed a moment ago may need a second to follow it, so a held lock is tried again for
    PATIENCE_SECONDS; then UserError.
    """
    file = (path / ".lock").open("a")
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return file
        except BlockingIOError:
            if time.monotonic() > deadline:
                file.close()
                raise UserError(f"{path}: another process is writing this run; allowed: one at a time") from None
            time.sleep(0.1)
