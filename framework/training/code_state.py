"""Which code a run was made by: commit and uncommitted changes of the checkout."""

import os
import subprocess
from pathlib import Path

import framework
from framework.files import write_atomically

SNAPSHOT = ".snapshot"
"""In a copy of a checkout that has no git of its own: the folder with the `commit` and `diff` that it was copied at."""


def write_code_state(folder: Path, checkout: Path = Path(framework.__file__).parents[1]) -> str:
    """Write `commit` and `diff` into the folder; returns the commit, or "unknown" outside a git checkout."""
    commit, diff = _snapshot(checkout / SNAPSHOT) if (checkout / SNAPSHOT).is_dir() else _asked_of_git(checkout)
    folder.mkdir(exist_ok=True)
    write_atomically(folder / "commit", commit + "\n")
    write_atomically(folder / "diff", diff)
    return commit


def _snapshot(stored: Path) -> tuple[str, bytes]:
    commit, diff = (path.read_bytes() if path.is_file() else b"" for path in (stored / "commit", stored / "diff"))
    return commit.decode(errors="replace").strip() or "unknown", diff


def _asked_of_git(checkout: Path) -> tuple[str, bytes]:
    """Git would answer for the nearest folder above that is a checkout; another one's commit is not this code's."""
    top = _git(checkout, "rev-parse", "--show-toplevel").decode(errors="replace").rstrip("\n")
    if not top or not os.path.samefile(top, checkout):
        return "unknown", b""
    return _git(checkout, "rev-parse", "HEAD").decode().strip() or "unknown", _git(checkout, "diff", "HEAD")


def _git(checkout: Path, *arguments: str) -> bytes:
    try:
        done = subprocess.run(["git", "-C", str(checkout), *arguments], capture_output=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return b""
    return done.stdout if done.returncode == 0 else b""
