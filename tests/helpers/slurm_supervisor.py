"""Keeps the daemons of a SLURM cluster for tests, and every process of its jobs, as long as its owner lives.

Runs as a process of its own: `python slurm_supervisor.py FOLDER OWNER NODE...`. It is a subreaper: what leaves its job
(setsid, a killed slurmstepd) becomes its child, so that stopping means its own subtree.
"""

import contextlib
import ctypes
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

PR_SET_CHILD_SUBREAPER = 36


class Supervisor:
    def __init__(self, folder: Path, owner: int) -> None:
        self.folder, self.owner = folder, (owner, start_time(owner))
        self.environment = {name: value for name, value in os.environ.items()
                            if not name.startswith(("SLURM_", "SBATCH_", "SRUN_"))}
        self.environment["SLURM_CONF"] = str(folder / "etc/slurm.conf")
        self.environment["MYSQL_UNIX_PORT"] = str(folder / "db/sock")
        self.daemons: dict[str, int] = {}
        self.told = False
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._tell)

    def _tell(self, number: int, frame: object) -> None:
        self.told = True

    def start(self, name: str, *command: str) -> None:
        with open(self.folder / "log" / f"{name}.out", "ab") as log:
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=self.environment,
                                       cwd=self.folder, start_new_session=True)
        process.returncode = 0  # reaped here, not by Popen
        self.daemons[name] = process.pid

    def start_all(self, nodes: list[str], port: int, database_port: int | None) -> None:
        munge, database = self.folder / "munge", self.folder / "db"
        # --force: pytest's folders are closed to others, which munged only warns of then.
        self.start("munged", "munged", "--foreground", "--force", f"--key-file={munge}/key", f"--socket={munge}/socket",
                   f"--pid-file={munge}/pid", f"--log-file={munge}/log", f"--seed-file={munge}/seed",
                   "--origin=127.0.0.1")
        wait_until((munge / "socket").exists)
        if database_port:
            self.start("mariadbd", "mariadbd", "--no-defaults", "--user=root", f"--datadir={database}",
                       f"--socket={database}/sock", f"--pid-file={database}/pid", "--skip-networking",
                       "--skip-grant-tables", "--innodb-log-file-size=8M", "--innodb-buffer-pool-size=32M")
            wait_until((database / "sock").exists)
            self.start("slurmdbd", "slurmdbd", "-D")
            wait_until(lambda: listens(database_port))
            subprocess.run(["sacctmgr", "-iQ", "add", "cluster", "test"], env=self.environment, capture_output=True)
        configuration = self.environment["SLURM_CONF"]
        self.start("slurmctld", "slurmctld", "-D", "-c", "-f", configuration)
        wait_until(lambda: listens(port))  # a slurmd that registers before that tries again only after long
        for node in nodes:
            (self.folder / "spool" / node).mkdir(parents=True)
            self.start(f"slurmd-{node}", "slurmd", "-D", "-c", "-N", node, "-f", configuration)

    def watch(self) -> None:
        """Until told to stop, or the owner is gone."""
        while not self.told and self.owner[1] is not None and start_time(self.owner[0]) == self.owner[1]:
            reap()
            time.sleep(0.1)

    def stop(self) -> None:
        daemons = [pid for name, pid in self.daemons.items() if name.startswith("slurm") and name != "slurmdbd"]
        jobs = [pid for pid in tree(os.getpid()) if pid not in self.daemons.values()]
        send(daemons + jobs, signal.SIGTERM)
        wait_gone(daemons, 5)
        base = [self.daemons[name] for name in ("slurmdbd", "mariadbd", "munged") if name in self.daemons]
        while left := [pid for pid in tree(os.getpid()) if pid not in base]:
            send(left, signal.SIGKILL)
            wait_gone(left, 0.2)
        for pid in base:
            send([pid], signal.SIGTERM)
            if not wait_gone([pid], 3):
                send([pid], signal.SIGKILL)


def start_time(pid: int) -> str | None:
    """Of a process, so that another one with its number is not taken for it."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return None


def tree(root: int) -> list[int]:
    """Every living process below one."""
    children: dict[int, list[int]] = {}
    for entry in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError, IndexError):
            fields = Path(f"/proc/{entry}/stat").read_text().rpartition(")")[2].split()
            if fields[0] != "Z":
                children.setdefault(int(fields[1]), []).append(int(entry))
    found, waiting = [], [root]
    while waiting:
        below = children.get(waiting.pop(), [])
        found += below
        waiting += below
    return found


def reap() -> None:
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def send(pids: list[int], number: int) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def wait_gone(pids: list[int], seconds: float) -> bool:
    return wait_until(lambda: reap() or not set(pids) & set(tree(os.getpid())), seconds)


def wait_until(condition, seconds: float = 15) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
    except OSError:
        return False
    return True


def main(folder: str, owner: str, port: str, database_port: str, *nodes: str) -> None:
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    supervisor = Supervisor(Path(folder), int(owner))
    try:
        supervisor.start_all(list(nodes), int(port), int(database_port) or None)
        supervisor.watch()
    finally:
        supervisor.stop()


if __name__ == "__main__":
    main(*sys.argv[1:])
