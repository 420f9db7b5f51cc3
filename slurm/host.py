"""Where SLURM's commands run and run folders stand: this machine, or a login node over ssh."""

from __future__ import annotations

import io
import os
import shlex
import subprocess
import tarfile
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from framework.errors import UserError
from framework.files import write_atomically

SECONDS = 60  # that a command of SLURM may take; a controller that is down answers after some tens
TAIL = 8192


@dataclass(frozen=True)
class Answer:
    """What a command said: exit code, standard output and error."""

    code: int
    output: str
    error: str


class Host:
    """This machine."""

    name = ""

    def run(self, command: Sequence[str], folder: str | None = None, given: bytes | None = None) -> Answer:
        """Run a command; code 127 where there is no such program, 124 where it does not end in time."""
        try:
            done = subprocess.run(command, cwd=folder, input=given, capture_output=True, timeout=SECONDS,
                                  stdin=None if given is not None else subprocess.DEVNULL)
        except FileNotFoundError:
            return Answer(127, "", f"{command[0]}: not found")
        except subprocess.TimeoutExpired:
            return Answer(124, "", f"{command[0]}: no answer in {SECONDS} seconds")
        return Answer(done.returncode, os.fsdecode(done.stdout), os.fsdecode(done.stderr).strip())

    def resolve(self, path: str) -> str:
        """An absolute path, without links in it."""
        return str(Path(path).resolve())

    def write(self, folder: str, files: Mapping[str, str | bytes]) -> None:
        """Write files by their path from a folder, which is made; each is whole or not there."""
        for name, content in files.items():
            path = Path(folder) / name
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, content)

    def unpack(self, folder: str, packed: bytes) -> None:
        """Unpack a tar archive as a folder that is whole or not there; nothing where it is there already."""
        if Path(folder).exists():
            return
        parent = Path(folder).parent
        parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=parent, prefix=".partial-", ignore_cleanup_errors=True) as partial:
            Path(partial).chmod(0o755)
            with tarfile.open(fileobj=io.BytesIO(packed)) as tar:
                tar.extractall(partial, filter="tar")
            with suppress(OSError):  # another submission was a moment faster
                os.rename(partial, folder)
        if not Path(folder).exists():
            raise UserError(f"{folder}: cannot be made; allowed: a runs folder that may be written")

    def tails(self, paths: Sequence[str], size: int = TAIL) -> list[str | None]:
        """The last bytes of each file as text, None where there is none."""
        return [_tail(path, size) for path in paths]

    def find(self, pattern: str) -> list[str]:
        """Paths that match a shell's pattern of plain names and `*`, sorted."""
        root, _, rest = pattern.partition("/*")
        return sorted(map(str, Path(root).glob(f"*{rest}")))


class Remote(Host):
    """A login node, by ssh alone: nothing of Upmix need be there."""

    def __init__(self, name: str) -> None:
        if name.startswith("-") or not name.isprintable() or " " in name:
            raise UserError(f"--remote {name!r}: allowed: user@host, or a name of ~/.ssh/config")
        self.name = name

    def run(self, command: Sequence[str], folder: str | None = None, given: bytes | None = None) -> Answer:
        line = shlex.join(command)
        line = f"cd {shlex.quote(folder)} && {line}" if folder else line
        answer = super().run(["ssh", "-o", "BatchMode=yes", self.name, "--", line], given=given)
        if answer.code == 255:
            raise UserError(f"--remote {self.name}: ssh says: {answer.error or 'nothing'}; allowed: a host that ssh "
                            "reaches without a password")
        return answer

    def resolve(self, path: str) -> str:
        return self._asked(["realpath", "-m", "--", path]).removesuffix("\n")

    def write(self, folder: str, files: Mapping[str, str | bytes]) -> None:
        packed = archive((name, content.encode() if isinstance(content, str) else content)
                         for name, content in files.items())
        self._asked(["sh", "-c", 'mkdir -p -- "$1" && tar -xf - -C "$1"', "_", folder], packed)

    def unpack(self, folder: str, packed: bytes) -> None:
        script = ('[ ! -d "$1" ] || exit 0; mkdir -p -- "$1.partial.$$" && tar -xf - -C "$1.partial.$$" && '
                  '{ mv -T -- "$1.partial.$$" "$1" 2>/dev/null || rm -rf -- "$1.partial.$$"; } && [ -d "$1" ]')
        self._asked(["sh", "-c", script, "_", folder], packed)

    def tails(self, paths: Sequence[str], size: int = TAIL) -> list[str | None]:
        # Each file as its number of bytes (or -) on a line, then so many bytes.
        script = ('size=$1; shift; for path; do if [ -f "$path" ]; then n=$(wc -c < "$path"); [ "$n" -le "$size" ] || '
                  'n=$size; echo "$n"; tail -c "$n" -- "$path"; else echo -; fi; done')
        text = self._asked(["sh", "-c", script, "_", str(size), *paths]).encode("utf-8", "surrogateescape")
        found: list[str | None] = []
        for _ in paths:
            length, _, text = text.partition(b"\n")
            content, text = (None, text) if length == b"-" else (text[: int(length)], text[int(length) :])
            found.append(None if content is None else content.decode(errors="replace"))
        return found

    def find(self, pattern: str) -> list[str]:
        root, _, rest = pattern.partition("/*")
        script = 'for path in "$1"/*"$2"; do [ ! -e "$path" ] || printf "%s\\0" "$path"; done'
        return sorted(self._asked(["sh", "-c", script, "_", root, rest]).split("\0")[:-1])

    def _asked(self, command: Sequence[str], given: bytes | None = None) -> str:
        answer = self.run(command, given=given)
        if answer.code:
            reason = answer.error or f"{command[0]} ended with {answer.code}"
            raise UserError(f"--remote {self.name}: {reason}; allowed: a host with a shell and tar, and a workdir that "
                            "may be written")
        return answer.output


def archive(files: Iterable[tuple[str, bytes]]) -> bytes:
    """A tar archive of files as (path, content)."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        for name, content in files:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return packed.getvalue()


def _tail(path: str, size: int) -> str | None:
    try:
        with open(path, "rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - size))
            return file.read().decode(errors="replace")
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        return None
