import fcntl
import threading

import pytest

from framework.data.storage import exclusive


def test_who_waits_for_a_lock_that_is_removed_does_not_share_the_work(tmp_path):
    """Its holder failed: the file that the other waits on is not the one that a third would find."""
    entered, leave = threading.Event(), threading.Event()

    def wait_and_hold():
        with exclusive(tmp_path / "a"):
            entered.set()
            assert leave.wait(30)

    second = threading.Thread(target=wait_and_hold)
    with pytest.raises(KeyError), exclusive(tmp_path / "a"):
        second.start()
        assert not entered.wait(0.3)
        raise KeyError
    assert entered.wait(30)
    with open(tmp_path / ".a.lock") as third, pytest.raises(BlockingIOError):
        fcntl.flock(third, fcntl.LOCK_EX | fcntl.LOCK_NB)
    leave.set()
    second.join()


def test_a_failure_takes_lock_and_new_folders_away(tmp_path):
    with pytest.raises(KeyError), exclusive(tmp_path / "new" / "a"):
        assert (tmp_path / "new" / ".a.lock").exists()
        raise KeyError
    assert not (tmp_path / "new").exists()
