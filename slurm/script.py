"""The text of a batch script: options of sbatch, where things stand, how ranks start, and what to do when they end.

Names of runs and paths come from users and may hold anything: they stand in assignments alone, quoted. The cluster's
file is its author's own shell code.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from slurm.cluster import ALWAYS_EXPORTED, Cluster, Container
from slurm.jobs import Command, Job

PARTS = Path(__file__).parent / "parts"


@dataclass(frozen=True)
class Places:
    """Absolute paths as the job sees them.

    workdir: where commands run, as where `upmix submit` ran. runs: the runs folder. job: scripts, recipes, logs and
    counts of this submission. code: the snapshot of the checkout.
    """

    workdir: str
    runs: str
    job: str
    code: str


def render(job: Job, cluster: Cluster, places: Places) -> str:
    """The whole script of a job; the same for the same input."""
    sections = [
        ["#!/bin/bash -l", f"# {_title(job)}. Written by `upmix submit`.", *_options(job, cluster)],
        *([[_part("signals")]] if job.trainings else []),
        ["# Where things stand.", *_places(job, places)],
        ["# What is run.", *_work(job, cluster)],
        ["# How its Python comes to be there, and how ranks start.", *_python(cluster), *_start(job, cluster)],
        [_part("train" if job.trainings else "command")],
    ]
    return "\n\n".join("\n".join(section) for section in sections) + "\n"


def job_name(text: str) -> str:
    """A name as SLURM's tables can show it: anything unusual becomes an underscore."""
    return re.sub(r"[^A-Za-z0-9._+=^-]", "_", text)[:100]


def _title(job: Job) -> str:
    what = "a command" if isinstance(job.work, Command) else f"{len(job.trainings)} run{'s' * job.is_array}"
    shape = job.shape
    return (f"{job_name(job.name)}: {what} on {shape.nodes} node{'s' * (shape.nodes > 1)} of {shape.ranks_per_node} "
            f"rank{'s' * (shape.ranks_per_node > 1)}")


def _options(job: Job, cluster: Cluster) -> Iterator[str]:
    shape, kind = job.shape, f"{cluster.gpu_type}:" if cluster.gpu_type else ""
    options = {
        "job-name": job_name(job.name), "nodes": shape.nodes, "ntasks-per-node": shape.ranks_per_node,
        "gpus-per-node": f"{kind}{shape.ranks_per_node}", "cpus-per-task": cluster.cpus_per_gpu,
        "partition": cluster.partition, "account": cluster.account, "time": cluster.time,
        **cluster.sbatch,
        "export": ",".join([*ALWAYS_EXPORTED, *cluster.environment]),
        "array": _indices(job, cluster.array_limit),
        "signal": f"B:USR1@{cluster.signal_seconds}" if job.trainings else None,
        "requeue" if cluster.requeue and job.trainings else "no-requeue": True,
        "open-mode": "append", "wait-all-nodes": 1, "kill-on-invalid-dep": "yes",
    }
    for option, value in options.items():
        if value is True:
            yield f"#SBATCH --{option}"
        elif value is not None and value is not False:
            yield f"#SBATCH --{option}={value}"


def _indices(job: Job, limit: int | None) -> str | None:
    if not job.is_array:
        return None
    return f"0-{len(job.trainings) - 1}" + (f"%{limit}" if limit else "")


def _places(job: Job, places: Places) -> Iterator[str]:
    runs = f"{places.runs}/{job.runs_dir}" if job.runs_dir else places.runs
    yield _assign("workdir", places.workdir)
    yield _assign("runs", runs)
    yield _assign("job", places.job)
    yield _assign("code", places.code)
    yield 'cd "$workdir" || exit 1'


def _work(job: Job, cluster: Cluster) -> Iterator[str]:
    if isinstance(job.work, Command):
        yield _array("arguments", job.work.arguments)
        return
    recipes = [f'"$job"/recipes/{shlex.quote(f"{training.run}.yaml")}' for training in job.trainings]
    yield _array("names", [training.run for training in job.trainings])
    yield _list("recipes", recipes)
    yield _array("all_steps", [str(training.num_steps) for training in job.trainings])
    yield _array("slides", [training.slide for training in job.trainings if training.slide])
    requeue = "yes" if cluster.requeue else "no"
    yield f"links={cluster.links} restarts={cluster.restarts_without_progress} requeue={requeue}"


def _python(cluster: Cluster) -> Iterator[str]:
    yield from (f"module load {module}" for module in cluster.modules)
    yield from (f'export {name}="{value}"' for name, value in cluster.variables.items())
    yield 'export PYTHONPATH="$code" PYTHONSAFEPATH=1 PYTHONUNBUFFERED=1'
    yield from cluster.setup
    yield f'python="{cluster.python}"'
    if cluster.wheels:
        yield f'wheels="{cluster.wheels}"'
        yield _part("wheels")


def _start(job: Job, cluster: Cluster) -> Iterator[str]:
    """How ranks start: a function `start ARGUMENTS`, and what it needs."""
    by_torchrun = cluster.launcher == "torchrun" and bool(job.trainings)
    flags = ["--export=ALL", "--kill-on-bad-exit=1"]
    if cluster.cpus_per_gpu:  # said again, since not every release hands it on from sbatch
        flags.append(f"--cpus-per-task={cluster.cpus_per_gpu * (job.shape.ranks_per_node if by_torchrun else 1)}")
    inside: list[str] = []
    if (container := cluster.container) is not None:
        own = [f'"${name}:${name}"' for name in ("workdir", "runs", "job", "code")]
        yield f"mounts=$(IFS=,; set -- {' '.join([*map(shlex.quote, container.mounts), *own])}; echo \"$*\")"
        flags, inside = _contained(container, flags)
    yield f"flags=({' '.join(flags)})"
    yield f"container=({' '.join(inside)})"
    if by_torchrun:
        yield f"ranks_per_node={job.shape.ranks_per_node}"
    yield _part("start_torchrun" if by_torchrun else "start_srun")
    if cluster.health_check:
        yield f"health_check={shlex.quote(cluster.health_check)}"
        yield _part("check_nodes")
    else:
        yield "check_nodes() { :; }"


def _contained(container: Container, flags: list[str]) -> tuple[list[str], list[str]]:
    """Flags of srun, and the command in which every rank's own command runs."""
    options = map(shlex.quote, container.options)
    if container.kind == "pyxis":
        return [*flags, f'--container-image="{container.image}"', '--container-mounts="$mounts"',
                '--container-workdir="$workdir"', *options], []
    return flags, [container.command, "exec", "--nv", '--bind="$mounts"', '--pwd="$workdir"', *options,
                   f'"{container.image}"']


def _part(name: str) -> str:
    return (PARTS / f"{name}.sh").read_text().rstrip()


def _assign(name: str, value: str) -> str:
    return f"{name}={shlex.quote(value)}"


def _array(name: str, values: Iterable[str]) -> str:
    return _list(name, map(shlex.quote, values))


def _list(name: str, words: Iterable[str]) -> str:
    """An array of words that are quoted already, each on a line of its own where it is long."""
    text = " ".join(words := list(words))
    return f"{name}=({text})" if len(text) < 100 else "\n  ".join([f"{name}=(", *words]) + "\n)"
