"""`upmix cancel NAME [TASK]`: cancel what was submitted."""

from pathlib import Path
from typing import Annotated

import typer

from framework.cli.slurm_options import Cluster, Remote, RunsDir, host_and_runs


def command(
    name: Annotated[str, typer.Argument(help="of the submission")],
    task: Annotated[str | None, typer.Argument(help="one run or job of it; default: all")] = None,
    runs_dir: RunsDir = Path("runs"),
    remote: Remote = None,
    cluster: Cluster = None,
) -> None:
    """Cancel jobs of a submission that wait or run. A run saves a checkpoint first; submit it again to go on."""
    from slurm.cancel import cancel

    cancelled = cancel(*host_and_runs(remote, cluster, runs_dir), name, task)
    print(f"cancelled: {', '.join(cancelled)}" if cancelled else f"{name}: no job waits or runs")
