"""Snapshots of the code: what is in them, what they leave alone, what they say they are."""

import io
import subprocess
import tarfile
from pathlib import Path

import pytest

from framework.errors import UserError
from slurm import snapshot
from slurm.host import Host
from slurm.snapshot import pack, take_snapshot


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A repository with a committed, an edited, a staged, a deleted, an untracked and an ignored file, and a link."""
    folder = tmp_path / "checkout"
    folder.mkdir()
    for name in ("kept.py", "edited.py", "deleted.py", "run.sh"):
        (folder / name).write_text("old\n")
    (folder / "run.sh").chmod(0o755)
    (folder / ".gitignore").write_text("ignored*\n")
    git(folder, "init", "-q")
    git(folder, "add", ".")
    git(folder, "-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "first")
    (folder / "edited.py").write_text("new\n")
    (folder / "deleted.py").unlink()
    (folder / "staged.py").write_text("staged\n")
    git(folder, "add", "staged.py")
    (folder / "un tracked é.py").write_text("untracked\n")
    (folder / "ignored.bin").write_text("weights")
    (folder / "link.py").symlink_to("kept.py")
    return folder


def git(folder: Path, *words: str) -> str:
    return subprocess.run(["git", "-C", folder, *words], check=True, capture_output=True, text=True).stdout


def state(folder: Path) -> dict[str, bytes]:
    """Every file of a checkout, git's own too."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_it_holds_what_is_there_and_touches_nothing(checkout: Path, tmp_path: Path) -> None:
    before = state(checkout)
    taken = take_snapshot(checkout)
    Host().unpack(str(tmp_path / "copy"), pack(taken, checkout))
    assert state(checkout) == before, "nothing of the user's tree, index or objects may change"
    found = {name: content for name, content in state(tmp_path / "copy").items() if not name.startswith(".snapshot")}
    names = (".gitignore", "edited.py", "kept.py", "link.py", "run.sh", "staged.py", "un tracked é.py")
    assert found == {name: before[name] for name in names}
    assert (tmp_path / "copy/link.py").is_symlink()
    assert (tmp_path / "copy/run.sh").stat().st_mode & 0o111
    assert {path.name for path in (tmp_path / "copy/.snapshot").iterdir()} == {"commit", "diff"}


def test_its_name_follows_from_the_contents(checkout: Path) -> None:
    name = take_snapshot(checkout).name
    assert take_snapshot(checkout).name == name
    (checkout / "kept.py").write_text("other\n")
    changed = take_snapshot(checkout).name
    assert changed != name
    (checkout / "kept.py").write_text("old\n")
    assert take_snapshot(checkout).name == name
    (checkout / "kept.py").chmod(0o755)
    assert take_snapshot(checkout).name != name


def test_without_git_what_is_no_code_is_left_out(tmp_path: Path) -> None:
    for name in ("framework/a.py", ".venv/lib/big.py", "runs/x/metrics.jsonl", "framework/__pycache__/a.pyc"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x")
    assert take_snapshot(tmp_path).files == ("framework/a.py",)


def test_data_that_git_does_not_ignore_is_refused(checkout: Path, monkeypatch) -> None:
    monkeypatch.setattr(snapshot, "LARGEST", 10)
    with pytest.raises(UserError, match="more than 0 MiB of code.*that git ignores"):
        take_snapshot(checkout)


def test_a_snapshot_that_is_there_is_not_written_again(checkout: Path, tmp_path: Path) -> None:
    packed = pack(take_snapshot(checkout), checkout)
    Host().unpack(str(tmp_path / "copy"), packed)
    (tmp_path / "copy/kept.py").write_text("as the running job has it")
    Host().unpack(str(tmp_path / "copy"), packed)
    assert (tmp_path / "copy/kept.py").read_text() == "as the running job has it"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkout", "copy"], "no partial folder may stay"


def test_archives_name_no_path_outside(checkout: Path) -> None:
    with tarfile.open(fileobj=io.BytesIO(pack(take_snapshot(checkout), checkout))) as tar:
        assert not [name for name in tar.getnames() if name.startswith("/") or ".." in name.split("/")]
