"""Starting the ranks of one machine. Imports no torch, so that a command that only starts ranks does so at once.

Each rank is a fresh interpreter that runs the same command and finds its place in the environment (`parallel.place`).
The ranks die with the process that started them, however it dies.
"""

import contextlib
import ctypes
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import IO

PR_SET_PDEATHSIG = 1
FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
# A rank that leaves with one of these has said why: a user's mistake, a stop that was asked for by a signal, or a
# watchdog that rang.
EXPLAINED_CODES = (2, *(128 + number for number in (*FORWARDED, signal.SIGALRM)))
SECONDS_TO_LEAVE = 5.0  # for the other ranks, once one has failed
SECONDS_BETWEEN_LOOKS = 0.02
SHOWN_BYTES = 8000  # of the output of the rank that failed

_libc = ctypes.CDLL(None)


@dataclass
class _Rank:
    process: subprocess.Popen
    output: IO[bytes]  # rank 0: the traceback that it ended with; others: all that they write


def launch(command: Sequence[str], num_ranks: int) -> int:
    """Run `command` as `num_ranks` ranks on this machine and return the exit code of the first that fails, or 0.

    Rank 0 writes to this process's own output; another rank's is shown if that rank fails first. So is the traceback
    of rank 0, which is often but the echo of another's end. SIGINT, SIGTERM and SIGUSR1 are passed on to every rank; a
    second SIGINT kills them. A rank finds them held back until it lets them through (`signal.pthread_sigmask`), so that
    none comes before its handler. Before all ranks are started one ends those that are, and is told in a line.
    Must be called from the main thread.
    """
    ranks: list[_Rank] = []
    failures, report = os.pipe()
    with _listening_socket() as listener, _forward_signals(ranks) as forwarded, os.fdopen(failures, "rb") as reported:
        try:
            for rank in range(num_ranks):
                ranks.append(_start(command, rank, num_ranks, listener, report))
                if forwarded:  # it may have come too early for the last of them
                    return _stopped_early(forwarded[0])
            _wait(ranks)
            codes = [rank.process.poll() for rank in ranks]
            _leave(ranks)
        finally:
            os.close(report)
            _kill(ranks)
        failed = _first_failure(codes, reported.read())
    return 0 if failed is None else _tell(failed, ranks)


def _listening_socket() -> socket.socket:
    """The rendezvous' socket: bound here and handed to rank 0, so that no other program can take its port between."""
    return socket.create_server(("127.0.0.1", 0))


def _start(command: Sequence[str], rank: int, num_ranks: int, listener: socket.socket, report: int) -> _Rank:
    environment = os.environ | {
        "RANK": str(rank),
        "WORLD_SIZE": str(num_ranks),
        "LOCAL_RANK": str(rank),
        "LOCAL_WORLD_SIZE": str(num_ranks),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(listener.getsockname()[1]),
        "UPMIX_LISTENER": str(listener.fileno()),
        "UPMIX_FAILURES": str(report),
        "GLOO_SOCKET_IFNAME": os.environ.get("GLOO_SOCKET_IFNAME", "lo"),
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(max(1, len(os.sched_getaffinity(0)) // num_ranks))),
    }
    parent, output = os.getpid(), tempfile.TemporaryFile()
    if rank == 0:
        environment["UPMIX_LAST_WORDS"] = str(output.fileno())
    process = subprocess.Popen(
        command,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=None if rank == 0 else output,
        stderr=None if rank == 0 else output,
        pass_fds=[report, listener.fileno(), output.fileno()] if rank == 0 else [report],
        process_group=0,  # the terminal's Ctrl-C reaches this process alone, which passes it on once
        preexec_fn=lambda: (signal.pthread_sigmask(signal.SIG_BLOCK, FORWARDED), die_with(parent)),
    )
    return _Rank(process, output)


def _stopped_early(number: int) -> int:
    print(f"stopped by {signal.Signals(number).name} before all ranks were started", file=sys.stderr)
    return 128 + number


def die_with(parent: int) -> None:
    """In a child, before it becomes another command: the kernel is to kill it when its parent (a process id) dies."""
    _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before the kernel was told
        os._exit(1)


@contextlib.contextmanager
def _forward_signals(ranks: list[_Rank]) -> Iterator[list[int]]:
    """Pass signals on to the ranks that are there; gives a list that they are noted in."""
    forwarded: list[int] = []

    def forward(number: int, frame: object) -> None:
        forwarded.append(number)
        for rank in ranks:
            if rank.process.poll() is None:
                rank.process.send_signal(signal.SIGKILL if forwarded.count(signal.SIGINT) > 1 else number)

    before = {number: signal.signal(number, forward) for number in FORWARDED}
    try:
        yield forwarded
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _wait(ranks: list[_Rank]) -> None:
    """Until all ranks have ended, or one has failed."""
    while True:
        codes = [rank.process.poll() for rank in ranks]
        if None not in codes or any(codes):
            return
        time.sleep(SECONDS_BETWEEN_LOOKS)


def _leave(ranks: list[_Rank]) -> None:
    """Give ranks a moment: they may be leaving for the same reason, each with its own files to close."""
    deadline = time.monotonic() + SECONDS_TO_LEAVE
    while time.monotonic() < deadline and any(rank.process.poll() is None for rank in ranks):
        time.sleep(SECONDS_BETWEEN_LOOKS)


def _kill(ranks: list[_Rank]) -> None:
    for rank in ranks:
        if rank.process.poll() is None:
            rank.process.kill()
        rank.process.wait()


def _first_failure(codes: list[int | None], reported: bytes) -> int | None:
    """The rank whose failure made the others fail, among several that failed within a moment of each other.

    A rank that a signal ended could report nothing; otherwise it is the first that reported an exception.
    """
    failed = [rank for rank, code in enumerate(codes) if code]
    ended_by_signal = [rank for rank in failed if codes[rank] < 0]
    first_reported = [rank for rank in map(int, reported.split()) if codes[rank] != 0][:1]
    return next(iter(ended_by_signal + first_reported + failed), None)


def _tell(failed: int, ranks: list[_Rank]) -> int:
    """The exit code of the rank that failed, after showing what it wrote, unless rank 0 has said the same."""
    codes = [rank.process.returncode for rank in ranks]
    code = codes[failed] if codes[failed] >= 0 else 128 - codes[failed]  # as a shell counts what a signal ended
    if code in EXPLAINED_CODES and codes[0] == codes[failed]:
        return code
    output = ranks[failed].output
    output.seek(max(0, output.seek(0, os.SEEK_END) - SHOWN_BYTES))
    sys.stderr.write(output.read().decode(errors="replace"))
    if len(ranks) > 1 or codes[failed] < 0:
        how = f"with exit code {code}" if codes[failed] >= 0 else f"killed by {signal.Signals(-codes[failed]).name}"
        print(f"rank {failed} failed first, {how}", file=sys.stderr)
    return code
