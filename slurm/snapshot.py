"""The code that a job runs: a copy of the checkout as it is at submission, uncommitted files included.

A job that waits a week must not pick up what is edited meanwhile. Nothing of git is written: not the working tree, not
the index, not an object.
"""

from __future__ import annotations

import hashlib
import io
import os
import stat
import subprocess
import tarfile
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import framework
from framework.errors import UserError
from framework.training.code_state import write_code_state

CHECKOUT = Path(framework.__file__).resolve().parents[1]
LEFT_OUT = {".git", ".venv", ".snapshot", "runs", "data", "build", "__pycache__"}
LARGEST = 256 * 2**20


@dataclass(frozen=True)
class Snapshot:
    """Files of a checkout by path from its root, and the name that follows from their contents."""

    name: str
    files: tuple[str, ...]


def take_snapshot(checkout: Path = CHECKOUT) -> Snapshot:
    """List what a checkout's snapshot holds: what git tracks and what it would track, or all but LEFT_OUT without git.

    Raises UserError for more than LARGEST bytes, which no code has.
    """
    files = tuple(sorted(name for name in _listed(checkout) if os.path.lexists(checkout / name)))
    digest, size = hashlib.sha256(), 0
    for name in files:
        status = (checkout / name).lstat()
        if (size := size + status.st_size) > LARGEST:
            raise UserError(f"{checkout}: more than {LARGEST >> 20} MiB of code ({name} is the first beyond); allowed: "
                            "data and weights that git ignores")
        path = checkout / name
        content = os.readlink(path).encode() if stat.S_ISLNK(status.st_mode) else path.read_bytes()
        digest.update(f"{name}\0{bool(status.st_mode & 0o100)}\0{len(content)}\0".encode() + content)
    return Snapshot(digest.hexdigest()[:16], files)


def pack(snapshot: Snapshot, checkout: Path = CHECKOUT) -> bytes:
    """A tar archive of a snapshot's files, links as links, with commit and diff under `.snapshot/`."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar, tempfile.TemporaryDirectory() as state:
        write_code_state(Path(state) / ".snapshot")
        tar.add(Path(state) / ".snapshot", ".snapshot")
        for name in snapshot.files:
            tar.add(checkout / name, name, recursive=False)
    return packed.getvalue()


def _listed(checkout: Path) -> list[str]:
    if (checkout / ".git").exists():
        command = ["git", "-C", str(checkout), "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
        with suppress(OSError):  # no git here
            done = subprocess.run(command, capture_output=True, env=os.environ | {"GIT_OPTIONAL_LOCKS": "0"})
            if done.returncode == 0:
                return [name for name in os.fsdecode(done.stdout).split("\0") if name]
    found = []
    for folder, inner, names in os.walk(checkout):
        inner[:] = [name for name in inner if name not in LEFT_OUT and not name.endswith(".egg-info")]
        found += [os.path.relpath(os.path.join(folder, name), checkout) for name in names]
    return found
