"""This machine and one behind ssh answer alike. The ssh of these tests runs the command in a shell of this machine."""

import os
from pathlib import Path

import pytest

from framework.errors import UserError
from slurm.host import Host, Remote, archive

HOSTILE = "a $(touch PWNED) 'b' \"c\"\né"


@pytest.fixture(params=["local", "remote"])
def host(request, tmp_path: Path, monkeypatch) -> Host:
    if request.param == "local":
        return Host()
    return fake_ssh(tmp_path, monkeypatch)


def fake_ssh(tmp_path: Path, monkeypatch) -> Remote:
    """As ssh does, it hands what stands behind the host's name to a shell, joined by blanks."""
    programs = tmp_path / "programs"
    programs.mkdir()
    (programs / "ssh").write_text('#!/bin/bash\n[[ $1 == -o && $3 == ann@login && $4 == -- ]] || exit 255\nshift 4\n'
                                  'cd / && exec sh -c "$*"\n')
    (programs / "ssh").chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    return Remote("ann@login")


def test_commands_get_their_words_unchanged(host: Host, tmp_path: Path) -> None:
    folder = tmp_path / HOSTILE
    folder.mkdir()
    answer = host.run(["printf", "%s|", HOSTILE, "", "*"], folder=str(folder))
    assert (answer.code, answer.output) == (0, f"{HOSTILE}||*|")
    assert host.run(["pwd"], folder=str(folder)).output == f"{folder}\n"
    assert host.run(["cat"], given=b"x\0y").output == "x\0y"
    assert host.run(["false"]).code == 1
    assert host.run(["no-such-program"]).code == 127
    assert not list(tmp_path.rglob("PWNED"))


def test_files_are_written_found_and_read(host: Host, tmp_path: Path) -> None:
    root = tmp_path / "runs\n$(x)"
    host.write(str(root / "b c"), {"job/submission.json": "{}", "job/log/é": b"\xff12345"})
    host.write(str(root / "a"), {"job/submission.json": "12"})
    assert host.find(f"{root}/*/job/submission.json") == [f"{root}/{name}/job/submission.json" for name in ("a", "b c")]
    assert host.find(f"{tmp_path}/nowhere/*/x") == []
    paths = [f"{root}/a/job/submission.json", f"{root}/gone", f"{root}/b c/job/log/é", str(root)]
    assert host.tails(paths, 5) == ["12", None, "12345", None]
    assert host.resolve(f"{root}/../x") == str(tmp_path / "x")


def test_an_archive_becomes_a_folder_once(host: Host, tmp_path: Path) -> None:
    folder = str(tmp_path / "code" / "abc")
    host.unpack(folder, archive([("x/y.py", b"1")]))
    host.unpack(folder, archive([("x/y.py", b"2")]))
    assert Path(folder, "x/y.py").read_text() == "1"
    assert os.listdir(tmp_path / "code") == ["abc"]


def test_hosts_that_ssh_cannot_reach_or_that_are_options(tmp_path: Path, monkeypatch) -> None:
    fake_ssh(tmp_path, monkeypatch)
    with pytest.raises(UserError, match="--remote ann@elsewhere: ssh says"):
        Remote("ann@elsewhere").run(["true"])
    for name in ("-oProxyCommand=touch PWNED", "a b"):
        with pytest.raises(UserError, match="allowed: user@host"):
            Remote(name)
