"""`upmix logs NAME [TASK] [-f]`: what a job said."""

import sys
import time
from pathlib import Path
from typing import Annotated

import typer

from framework.cli.slurm_options import Cluster, Remote, RunsDir, host_and_runs


def command(
    name: Annotated[str, typer.Argument(help="of the submission")],
    task: Annotated[str | None, typer.Argument(help="one run or job of it; default: the first that spoke")] = None,
    runs_dir: RunsDir = Path("runs"),
    follow: Annotated[bool, typer.Option("--follow", "-f", help="go on until the job ends")] = False,
    remote: Remote = None,
    cluster: Cluster = None,
) -> None:
    """Print the log of a job: all its starts, one behind the other."""
    from slurm.logs import Log

    log = Log(*host_and_runs(remote, cluster, runs_dir), name, task)
    _print(log)
    while follow and not log.is_over():
        time.sleep(1)
        _print(log)


def _print(log) -> None:
    for text in log.read():
        sys.stdout.buffer.write(text)
    sys.stdout.buffer.flush()
