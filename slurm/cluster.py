"""What a cluster is like: one YAML file, under `slurm/clusters/` or the user's own."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, ValidationInfo, field_validator

from framework.errors import UserError, nearest
from framework.recipe.errors import Origin, RecipeError, shorten
from framework.recipe.files import SUFFIXES, display, read_text
from framework.recipe.schema.base import Section
from framework.recipe.tree import walk
from framework.recipe.validate import validate
from framework.recipe.yaml_reader import plain, read_yaml

CLUSTERS = Path(__file__).parent / "clusters"
ALWAYS_EXPORTED = ("HOME", "USER", "PATH", "LANG", "LC_ALL")
OWN_OPTIONS = {
    "account", "array", "begin", "chdir", "cpus-per-task", "dependency", "error", "export", "gpus", "gpus-per-node",
    "gpus-per-task", "gres", "job-name", "kill-on-invalid-dep", "nodes", "no-requeue", "ntasks", "ntasks-per-node",
    "open-mode", "output", "parsable", "partition", "requeue", "signal", "test-only", "time", "wait", "wait-all-nodes",
    "wrap",
}
"""Options of sbatch that follow from the layout or from the cluster's other fields."""


def _one_line(text: str) -> str:
    if not text.isprintable():
        raise ValueError("one line of printable text")
    return text


def _word(text: str) -> str:
    if not re.fullmatch(r"[^\s\"'\\`$;&|<>]+", text):
        raise ValueError("a word without blanks, quotes or a shell's signs")
    return text


def _variable(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", text):
        raise ValueError("a variable's name (letters, digits, _), never its value")
    return text


def _minutes(text: str) -> str:
    if not re.fullmatch(r"(\d+-)?\d{1,4}(:\d{2}){0,2}", text):
        raise ValueError('a time as sbatch has it, in quotes: "90", "24:00:00" or "2-00:00:00"')
    return text


def _option(text: str) -> str:
    if not re.fullmatch(r"[a-z][a-z-]*", text):
        raise ValueError("a long option of sbatch without the dashes")
    if text in OWN_OPTIONS:
        raise ValueError(f"another option than {text}, which Upmix sets itself")
    return text


Line = Annotated[str, AfterValidator(_one_line)]
Word = Annotated[str, AfterValidator(_word)]
Variable = Annotated[str, AfterValidator(_variable)]
Time = Annotated[str, AfterValidator(_minutes)]
Option = Annotated[str, AfterValidator(_option)]


class Container(Section):
    """Where each rank runs. kind: `pyxis` (srun's own --container-image) or `apptainer` (also Singularity)."""

    kind: Literal["pyxis", "apptainer"]
    image: Line
    mounts: tuple[Line, ...] = ()
    command: Word = "apptainer"
    options: tuple[Line, ...] = ()


class Cluster(Section):
    """How jobs are asked for, and how they get their Python. Fields as docs/slurm.md explains them.

    In paths and commands the job's shell expands variables ($HOME); names of runs and values of recipes never reach it
    unquoted.
    """

    description: Line = ""
    partition: Word | None = None
    account: Word | None = None
    time: Time | None = None
    gpus_per_node: Annotated[int, Field(ge=1)]
    gpu_type: Word | None = None
    cpus_per_gpu: Annotated[int, Field(ge=1)] | None = None
    sbatch: dict[Option, bool | int | Line] = {}

    workdir: Line | None = None
    python: Line = "python3"
    wheels: Line | None = None
    container: Container | None = None
    modules: tuple[Line, ...] = ()
    setup: tuple[Line, ...] = ()
    environment: tuple[Variable, ...] = ()
    variables: dict[Variable, Line] = {}

    launcher: Literal["srun", "torchrun"] = "srun"
    health_check: Line | None = None
    signal_seconds: Annotated[int, Field(ge=10, le=65535)] = 180
    requeue: bool = True
    links: Annotated[int, Field(ge=1, le=100)] = 1
    restarts_without_progress: Annotated[int, Field(ge=0)] = 2
    array_limit: Annotated[int, Field(ge=1)] | None = None

    @field_validator("links")
    @classmethod
    def _chain_or_requeue(cls, links: int, info: ValidationInfo) -> int:
        if links > 1 and info.data.get("requeue"):
            raise ValueError("1 while requeue is true: a run is either requeued or planned as a chain of jobs")
        return links

    @field_validator("container")
    @classmethod
    def _wheels_or_container(cls, container: Container | None, info: ValidationInfo) -> Container | None:
        if container is not None and info.data.get("wheels") is not None:
            raise ValueError("none where wheels are given: a container brings its own packages")
        return container


def cluster_names() -> list[str]:
    """Names of the files under `slurm/clusters/`."""
    return sorted(path.stem for path in CLUSTERS.glob("*.yaml"))


def load_cluster(name_or_path: str) -> Cluster:
    """Read a cluster's file: a name under `slurm/clusters/`, or a .yaml file. Raises UserError, one line with place."""
    path = _find(name_or_path)
    place = display(path)
    tree = read_yaml(read_text(path), place, 0)
    if not isinstance(tree.value, dict):
        raise UserError(f"{place}: given {shorten(plain(tree))}; allowed: a mapping with partition, gpus_per_node, ...")
    try:
        return validate(Cluster, plain(tree))
    except RecipeError as error:
        raise error.located({key: entry.origin for key, entry in walk(tree)}, Origin(place)) from None


def _find(name: str) -> Path:
    if Path(name).suffix in SUFFIXES:
        if not Path(name).is_file():
            raise UserError(f"--cluster {name!r}: no such file; allowed: a cluster's .yaml file, or one of "
                            f"{', '.join(cluster_names())}")
        return Path(name)
    if name not in cluster_names():
        raise UserError(f"--cluster {name!r}: no such cluster{nearest(name, cluster_names())}; allowed: "
                        f"{', '.join(cluster_names())}, or a .yaml file")
    return CLUSTERS / f"{name}.yaml"


def remote_workdir(cluster: Cluster, name: str) -> str:
    """The folder on a login node in which jobs work. Raises UserError where the cluster's file has none."""
    if cluster.workdir is None or not cluster.workdir.startswith("/"):
        raise UserError(f"--cluster {name}: workdir is {cluster.workdir or 'not given'}; allowed with --remote: an "
                        "absolute path on the login node")
    return cluster.workdir
