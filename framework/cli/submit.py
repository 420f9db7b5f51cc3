"""`upmix submit RECIPE|SWEEP|CHAIN --cluster FILE`: from a recipe to SLURM's queue."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from framework.cli.slurm_options import RunsDir
from framework.cli.sweep_options import Link, Over, Seeds, Tags, Where, arguments

if TYPE_CHECKING:
    from slurm.cluster import Cluster
    from slurm.host import Host
    from slurm.jobs import Submission
    from slurm.record import Record
    from slurm.script import Places


def command(
    source: Annotated[str, typer.Argument(
        metavar="RECIPE|SWEEP|CHAIN", help="a recipe's name or file, or the file of a sweep or chain")],
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="fields to change")] = None,
    cluster: Annotated[str, typer.Option(metavar="FILE", help="a name under slurm/clusters/, or a .yaml file")] = ...,
    name: Annotated[str | None, typer.Option(help="of the run or submission; default: the source's last part")] = None,
    runs_dir: RunsDir = Path("runs"),
    over: Over = None,
    seeds: Seeds = None,
    link: Link = None,
    where: Where = None,
    tag: Tags = None,
    resume: Annotated[bool, typer.Option("--resume", help="go on with the run, if it is there")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="print all that would be submitted, no more")] = False,
    remote: Annotated[str | None, typer.Option(metavar="USER@HOST", help="by ssh on a login node")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print one JSON object")] = False,
) -> None:
    """Write batch scripts and resolved recipes into the run folder, and submit them. What is finished is left out."""
    from slurm.cluster import load_cluster, remote_workdir
    from slurm.host import Host, Remote
    from slurm.snapshot import take_snapshot
    from slurm.sources import plan
    from slurm.submit import places_of, require_plain_mounts, submit

    chosen = load_cluster(cluster)
    host = Host() if remote is None else Remote(remote)
    workdir = host.resolve("." if remote is None else remote_workdir(chosen, cluster))
    runs = host.resolve(os.path.join(workdir, runs_dir))
    asked = arguments(overrides, over, seeds, link, where, tag, name)
    submission = plan(source, asked, chosen.gpus_per_node, host, runs, resume)
    snapshot = take_snapshot()
    places = places_of(workdir, runs, submission.name, snapshot.name)
    require_plain_mounts(chosen, places)
    for task in submission.finished:
        print(f"{task}: finished already", file=sys.stderr)
    _warn_of_unset(chosen)
    if dry_run:
        _show(submission, chosen, host, places, as_json)
    elif submission.jobs:
        _tell(submit(submission, chosen, cluster, host, places, snapshot), as_json)
    elif as_json:
        print(json.dumps({"name": submission.name, "folder": places.job, "jobs": []}))


def _warn_of_unset(cluster: Cluster) -> None:
    if unset := [name for name in cluster.environment if name not in os.environ]:
        print(f"upmix: not set here, so not in the job either: {', '.join(unset)}", file=sys.stderr)


def _tell(record: Record, as_json: bool) -> None:
    if as_json:
        jobs = [{"name": job.name, "ids": job.ids, "tasks": len(job.tasks())} for job in record.jobs]
        print(json.dumps({"name": record.name, "folder": record.folder, "jobs": jobs}))
        return
    for job in record.jobs:
        tasks = f", {len(job.runs)} tasks" if len(job.runs) > 1 else ""
        print(f"{job.name}: job {', '.join(job.ids)}{tasks}")
    print(f"scripts, recipes and logs: {record.folder}; `upmix status {record.name}` follows it")


def _show(submission: Submission, cluster: Cluster, host: Host, places: Places, as_json: bool) -> None:
    """Every script, the recipe of every run, and what SLURM would say."""
    from slurm.queue import NoController
    from slurm.submit import scripts, test_only

    texts = scripts(submission, cluster, places)
    recipes = {training.run: training.recipe for job in submission.jobs for training in job.trainings}
    files = texts | {f"recipes/{name}.yaml": text for name, text in recipes.items()}
    if as_json:
        print(json.dumps({"name": submission.name, "folder": places.job, "files": files}))
    else:
        for name, text in files.items():
            print(f"### {places.job}/{name}\n\n{text}")
    sys.stdout.flush()
    try:
        for name, answer in zip(texts, test_only(host, list(texts.values())), strict=True):
            print(f"upmix: {name}: {answer}", file=sys.stderr)
    except NoController as error:
        print(f"upmix: no SLURM answers here ({error.reason}): not tested with sbatch", file=sys.stderr)
    print("upmix: nothing was submitted", file=sys.stderr)
