"""Which code a run is said to be made by."""

import subprocess
from pathlib import Path

import pytest

from framework.training.code_state import write_code_state


def git(folder: Path, *arguments: str) -> str:
    settings = ("-c", "user.name=a", "-c", "user.email=a@b", "-c", "init.defaultBranch=main")
    done = subprocess.run(["git", *settings, "-C", str(folder), *arguments], capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.fixture
def checkout(tmp_path):
    """A git checkout with a change that is not committed."""
    path = tmp_path / "checkout"
    path.mkdir()
    git(path, "init")
    (path / "code.py").write_text("before\n")
    git(path, "add", ".")
    git(path, "commit", "-m", "first")
    (path / "code.py").write_text("after\n")
    return path


def stated(tmp_path: Path, checkout: Path) -> tuple[str, bytes]:
    """Commit and diff, as they are written."""
    commit = write_code_state(tmp_path / "code", checkout)
    assert (tmp_path / "code" / "commit").read_text() == commit + "\n"
    return commit, (tmp_path / "code" / "diff").read_bytes()


def test_a_checkout_is_its_own_commit_and_changes(tmp_path, checkout):
    link = tmp_path / "link"
    link.symlink_to(checkout)
    for path in (checkout, link):
        commit, diff = stated(tmp_path, path)
        assert commit == git(checkout, "rev-parse", "HEAD") and b"-before\n+after\n" in diff


@pytest.mark.parametrize("inside", ["runs/.code/7", "."])
def test_a_snapshot_is_what_it_was_copied_at(tmp_path, checkout, inside):
    stored = checkout / inside / ".snapshot"
    stored.mkdir(parents=True)
    (stored / "commit").write_text("1234\n")
    (stored / "diff").write_bytes(b"+no \xff UTF-8\n")
    assert stated(tmp_path, checkout / inside) == ("1234", b"+no \xff UTF-8\n")


def test_a_snapshot_that_says_nothing_is_unknown(tmp_path, checkout):
    (checkout / ".snapshot").mkdir()
    assert stated(tmp_path, checkout) == ("unknown", b"")


def test_code_within_another_checkout_is_not_that_ones(tmp_path, checkout):
    (checkout / "runs" / "copy").mkdir(parents=True)
    assert stated(tmp_path, checkout / "runs" / "copy") == ("unknown", b"")
    (tmp_path / "elsewhere").mkdir()
    assert stated(tmp_path, tmp_path / "elsewhere") == ("unknown", b"")
