"""Which code a run was made by: commit and uncommitted changes of the checkout."""

import subprocess
from pathlib import Path

import framework
from framework.files import write_atomically


def write_code_state(folder: Path) -> str:
    """Write `commit` and `diff` into the folder; returns the commit, or "unknown" outside a git checkout."""
    checkout = Path(framework.__file__).parents[1]
    commit = _git(checkout, "rev-parse", "HEAD").strip() or "unknown"
    folder.mkdir(exist_ok=True)
    write_atomically(folder / "commit", commit + "\n")
    write_atomically(folder / "diff", _git(checkout, "diff", "HEAD"))
    return commit


def _git(checkout: Path, *arguments: str) -> str:
    try:
        done = subprocess.run(["git", "-C", str(checkout), *arguments], capture_output=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.decode(errors="replace") if done.returncode == 0 else ""
