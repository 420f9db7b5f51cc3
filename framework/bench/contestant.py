"""A contestant's process, as the one that started it sees it. Imports no torch."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from framework.errors import UserError
from parallel.launcher import die_with

OURS = "upmix"
"""The name of the contestant that is not a peer."""
SERVE = (sys.executable, "-P", "-m", "framework.bench.serve")
"""The command of its process. -P: a folder of the working directory must not pass for one of our packages."""

SECONDS_BETWEEN_LOOKS = 0.05
SECONDS_TO_LEAVE = 5.0


class ContestantFailure(RuntimeError):
    """A contestant's process failed or died; says which and how in one line."""


class Contestant:
    """A process that loads a recipe and then does as it is told; a context manager.

    num_threads: as OMP_NUM_THREADS has it. The process starts at once, and what it is asked first waits for it. It dies
    with this one.
    """

    def __init__(self, name: str, recipe: str, overrides: Sequence[str], num_threads: str) -> None:
        self.name = name
        self._folder = tempfile.TemporaryDirectory(prefix="upmix-")
        self._stderr = tempfile.TemporaryFile()
        address = str(Path(self._folder.name) / "socket")
        self._server = socket.socket(socket.AF_UNIX)
        self._server.bind(address)
        self._server.listen(1)
        self._connection: Connection | None = None
        parent = os.getpid()
        self._process = subprocess.Popen(
            [*SERVE, name, address, recipe, *overrides],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=self._stderr,
            env=os.environ | {"OMP_NUM_THREADS": num_threads},
            process_group=0,  # Ctrl-C reaches the process that started it, which ends it
            preexec_fn=lambda: die_with(parent),
        )

    def __enter__(self) -> Contestant:
        return self

    def __exit__(self, *error: object) -> None:
        """Let it go; one that does not leave at once, or is at work, is killed."""
        if self._connection is not None:
            self._connection.close()
        try:
            self._process.wait(SECONDS_TO_LEAVE if error[0] is None else 0)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._server.close()
        self._stderr.close()
        self._folder.cleanup()

    def ask(self, do: str, **details: Any) -> dict[str, Any]:
        """What it answers when it has done so. Raises UserError for a user's mistake, else ContestantFailure."""
        try:
            self._connection = self._connection or self._accept()
            self._connection.send_bytes(json.dumps({"do": do, "with": details}).encode())
            message = json.loads(self._connection.recv_bytes())
        except (EOFError, ConnectionError):
            raise ContestantFailure(self._last_words()) from None
        if "mistake" in message:
            raise UserError(message["mistake"])
        if "failure" in message:
            raise ContestantFailure(f"the process of {self.name} failed: {message['failure']}")
        return message["answer"]

    def _accept(self) -> Connection:
        self._server.settimeout(SECONDS_BETWEEN_LOOKS)
        while True:
            try:
                accepted, _ = self._server.accept()
            except TimeoutError:
                if self._process.poll() is not None:
                    raise EOFError from None
            else:
                accepted.setblocking(True)
                return Connection(accepted.detach())

    def _last_words(self) -> str:
        deadline = time.monotonic() + 2 * SECONDS_TO_LEAVE  # a launcher first gives other ranks time to leave
        while (code := self._process.poll()) is None and time.monotonic() < deadline:
            time.sleep(SECONDS_BETWEEN_LOOKS)
        if code is None:
            how = "hung up"
        else:
            how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        self._stderr.seek(0)
        lines = self._stderr.read().decode(errors="replace").strip().splitlines()
        return f"the process of {self.name} {how}" + (f": {lines[-1].strip()}" if lines else "")
