"""Options that all commands on jobs share."""

from pathlib import Path
from typing import Annotated

import typer

Remote = Annotated[str | None, typer.Option(
    metavar="USER@HOST", help="by ssh on a login node; needs --cluster, whose workdir holds the runs")]
Cluster = Annotated[str | None, typer.Option(metavar="FILE", help="a cluster's name or .yaml file; for --remote")]
RunsDir = Annotated[Path, typer.Option(help="where run folders stand")]


def host_and_runs(remote: str | None, cluster: str | None, runs_dir: Path):
    """The host that is asked, and the absolute path of its runs folder."""
    from framework.errors import UserError
    from slurm.host import Host, Remote

    if remote is None:
        host = Host()
        return host, host.resolve(str(runs_dir))
    if cluster is None:
        raise UserError("--remote without --cluster; allowed: --cluster FILE, whose workdir holds the runs")
    from slurm.cluster import load_cluster, remote_workdir

    host = Remote(remote)
    return host, host.resolve(f"{remote_workdir(load_cluster(cluster), cluster)}/{runs_dir}")
