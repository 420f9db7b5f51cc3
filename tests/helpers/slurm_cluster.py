"""A private SLURM cluster on this machine, for tests: real daemons, as many nodes as wanted, GPUs that are no devices.

Needs root and Debian's packages slurm-wlm (and for sacct: slurmdbd, mariadb-server-core, slurm-wlm-mysql-plugin).
Nodes are named by loopback addresses, which resolve by themselves. GPUs are links to /dev/null: SLURM gives them out,
and PyTorch sees none, so that ranks compute on the CPU.
"""

import os
import random
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

PREFIX = "127.0.1."
SQL = Path("/usr/share/mysql/mysql_system_tables.sql")

CONFIGURATION = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket,cred_expire=5
CredType=cred/munge
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
SrunPortRange={srun_ports}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool/%n
SlurmctldPidFile={folder}/run/slurmctld.pid
SlurmdPidFile={folder}/run/slurmd-%n.pid
SlurmctldLogFile={folder}/log/slurmctld.log
SlurmdLogFile={folder}/log/slurmd-%n.log
PlugStackConfig={folder}/etc/plugstack.conf
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
SwitchType=switch/none
{accounting}
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_interval=2,sched_min_interval=0,bf_interval=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
JobRequeue=1
KillWait=10
CompleteWait=0
InactiveLimit=0
MinJobAge=3600
ReturnToService=2
MailProg=/bin/true
SlurmdParameters=config_overrides
GresTypes=gpu
LaunchParameters=enable_nss_slurm
NodeName={prefix}[1-{nodes}] NodeHostname={host} NodeAddr=127.0.0.1 Port={slurmd_ports} CPUs={cpus} RealMemory=1048576 Gres=gpu:h100:{gpus} State=UNKNOWN
PartitionName=main Nodes={prefix}[1-{nodes}] Default=YES MaxTime=INFINITE DefaultTime=60 DefMemPerCPU=1024 PriorityTier=10 PreemptMode=OFF State=UP
PartitionName=low Nodes={prefix}[1-{nodes}] MaxTime=INFINITE DefaultTime=60 DefMemPerCPU=1024 PriorityTier=1 PreemptMode=REQUEUE GraceTime=1 State=UP
{extra}
"""  # noqa: E501

DATABASE = """
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket
CommunicationParameters=NoInAddrAny
DbdHost={host}
DbdAddr=127.0.0.1
DbdPort={database_port}
SlurmUser=root
LogFile={folder}/log/slurmdbd.log
PidFile={folder}/run/slurmdbd.pid
StorageType=accounting_storage/mysql
StorageHost=localhost
StorageUser=root
StorageLoc=slurm_acct
"""

ACCOUNTING = """AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort={database_port}
AccountingStoragePass={folder}/munge/socket
AccountingStorageTRES=gres/gpu"""


def missing() -> str | None:
    """Why no cluster can be started here; None: one can."""
    if os.geteuid() != 0:
        return "a SLURM cluster of its own needs root"
    wanted = ("munged", "slurmctld", "slurmd", "sbatch")
    absent = [name for name in wanted if shutil.which(name, path=_path()) is None]
    return f"not installed: {', '.join(absent)} (`make test-slurm` installs them)" if absent else None


class SlurmCluster:
    """Started by the constructor; its folder's path must be short and plain, for the daemons' sockets."""

    def __init__(
        self, folder: Path, nodes: int, gpus: int, cpus: int = 64, accounting: bool = True, extra: str = "",
    ) -> None:
        self.folder, self.nodes = folder, [f"{PREFIX}{index + 1}" for index in range(nodes)]
        has_database = accounting and shutil.which("slurmdbd", path=_path()) is not None and SQL.exists()
        port = _free_ports(nodes + 202)
        database_port = port + nodes + 1 if has_database else 0
        for name in ("etc", "state", "spool", "run", "log", "munge", "dev", "db"):
            (folder / name).mkdir(parents=True)
        folder.chmod(0o711)
        (folder / "munge").chmod(0o711)
        values = dict(
            folder=folder, host=socket.gethostname().partition(".")[0], port=port, database_port=database_port,
            srun_ports=f"{port + nodes + 2}-{port + nodes + 201}", prefix=PREFIX, nodes=nodes, cpus=cpus, gpus=gpus,
            slurmd_ports=f"{port + 1}-{port + nodes}", extra=extra,
            accounting="AccountingStorageType=accounting_storage/none",
        )
        if has_database:
            values["accounting"] = ACCOUNTING.format(**values)
            self._write("etc/slurmdbd.conf", DATABASE.format(**values), mode=0o600)
            self._make_database()
        self._write("etc/slurm.conf", CONFIGURATION.format(**values))
        self._write("etc/plugstack.conf", "")
        self._write("etc/cgroup.conf", "CgroupAutomount=no\n")
        self._write("etc/gres.conf", f"AutoDetect=off\nName=gpu Type=h100 File={folder}/dev/gpu[0-{gpus - 1}]\n")
        for gpu in range(gpus):
            (folder / f"dev/gpu{gpu}").symlink_to("/dev/null")  # SLURM wants devices, and counts each name once
        (folder / "munge/key").write_bytes(random.randbytes(1024))
        (folder / "munge/key").chmod(0o600)
        self.environment = {"SLURM_CONF": str(folder / "etc/slurm.conf"), "PATH": _path()}
        supervisor = Path(__file__).with_name("slurm_supervisor.py")
        with open(folder / "log/supervisor.out", "wb") as log:
            self._supervisor = subprocess.Popen(
                [sys.executable, supervisor, folder, str(os.getpid()), str(port), str(database_port), *self.nodes],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=os.environ | {"PATH": _path()},
                start_new_session=True,
            )
        self._wait_until_idle()

    def run(self, *command: str, may_fail: bool = False) -> str:
        """What a command of SLURM prints."""
        done = subprocess.run(command, env=os.environ | self.environment, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0 or may_fail, (command, done.stderr)
        return done.stdout

    def stop(self) -> None:
        """End the daemons and everything that their jobs started."""
        self._supervisor.terminate()
        self._supervisor.wait(60)

    def _write(self, name: str, text: str, mode: int = 0o644) -> None:
        (self.folder / name).write_text(text)
        (self.folder / name).chmod(mode)

    def _make_database(self) -> None:
        statements = f"create database mysql;\nuse mysql;\nset @auth_root_socket=NULL;\n{SQL.read_text()}"
        subprocess.run(["mariadbd", "--no-defaults", "--bootstrap", "--user=root", f"--datadir={self.folder}/db",
                        "--innodb-log-file-size=8M", "--innodb-buffer-pool-size=16M"], input=statements.encode(),
                       env=os.environ | {"PATH": _path()}, capture_output=True, check=True)

    def _wait_until_idle(self) -> None:
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline and self._supervisor.poll() is None:
            done = subprocess.run(["sinfo", "-h", "-N", "-p", "main", "-o", "%T"], env=os.environ | self.environment,
                                  capture_output=True, text=True)
            if done.stdout.split() == ["idle"] * len(self.nodes):
                return
            time.sleep(0.05)
        logs = "\n".join(f"{path.name}: {path.read_text()[-500:]}" for path in (self.folder / "log").iterdir())
        self.stop()
        raise RuntimeError(f"no SLURM cluster: {logs}")


def _path() -> str:
    return f"{os.environ['PATH']}:/usr/sbin:/sbin"


def _free_ports(count: int) -> int:
    """The first of a free block, below those that outgoing connections get."""
    top = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    for _ in range(200):
        first = random.randrange(10000, (top if top > 12000 else 65000) - count)
        held = []
        try:
            for port in range(first, first + count):
                held.append(socket.create_server(("127.0.0.1", port)))
            return first
        except OSError:
            continue
        finally:
            for each in held:
                each.close()
    raise RuntimeError("no free block of ports")
