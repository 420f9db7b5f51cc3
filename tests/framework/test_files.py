"""Files that are whole or not there, and names that folders may have."""

import pytest

from framework.errors import UserError
from framework.files import atomic_folder, is_plain_name, writable, write_atomically


def test_a_write_that_fails_leaves_nothing(tmp_path):
    (tmp_path / "folder").mkdir()
    with pytest.raises(IsADirectoryError):
        write_atomically(tmp_path / "folder", "text")
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


@pytest.mark.parametrize("place", ["file/a", "file/deep/a", "/proc/none/a", "folder", "n" * 252, "new/" + "n" * 252])
def test_what_cannot_be_written_is_refused_before_the_work(tmp_path, place):
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    with pytest.raises(UserError, match="cannot be written: .*; allowed: b"), writable(tmp_path / place, "b"):
        raise AssertionError
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]


def test_folders_made_for_a_write_go_with_its_failure_unless_they_hold_something(tmp_path):
    for left in ("", "file"):
        with pytest.raises(KeyError), writable(tmp_path / "deep" / "er" / "a", "another"):
            assert (tmp_path / "deep" / "er").is_dir()
            if left:
                (tmp_path / "deep" / left).touch()
            raise KeyError
        assert (tmp_path / "deep").exists() == bool(left) and not (tmp_path / "deep" / "er").exists()


def test_a_folder_that_fails_goes_with_those_made_above_it(tmp_path):
    with pytest.raises(KeyError), atomic_folder(tmp_path / "deep" / "er" / "out") as folder:
        (folder / "a").touch()
        raise KeyError
    assert not list(tmp_path.iterdir())
    with atomic_folder(tmp_path / "deep" / "out") as folder:
        (folder / "a").touch()
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["out"]


def test_names_of_folders():
    assert all(map(is_plain_name, ["a", "run 1", "\u00e9-2.5", "n" * 200]))
    assert not any(map(is_plain_name, ["", ".a", "..", "a/b", "../x", "a\nb", "a\0", "\udcff", "n" * 201]))
