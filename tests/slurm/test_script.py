"""Batch scripts: golden files for the eye, bash for what they do, hostile names for what they must not do."""

import json
import os
import subprocess
import tempfile
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from slurm.cluster import Cluster, load_cluster
from slurm.jobs import Command, Job, Training
from slurm.script import Places, render
from slurm.shape import Shape

GOLDEN = Path(__file__).with_name("golden")
TRAINER = Path(__file__).with_name("trainer.py")
PLACES = Places("/home/ann/project", "/home/ann/project/runs", "/home/ann/project/runs/NAME/job",
                "/home/ann/project/runs/.code/0123456789abcdef")


def training(run: str, slide: str | None = None, num_steps: int = 1000) -> Training:
    return Training(run, f"training:\n  steps: {num_steps}\n", num_steps, slide)


GPU = {"partition": "gpu", "gpus_per_node": 8}
JOBS = {
    "one_run": (Job("quickstart", (training("quickstart"),), Shape(1, 2)), "example_h100"),
    "two_nodes_in_a_container": (Job("hybrid", (training("hybrid"),), Shape(2, 4)), "example_gh200"),
    "array": (Job("cells", (training("lr_1-seed_0"), training("lr_2-seed_0")), Shape(1, 8), "grid"), "example_h100"),
    "slides": (Job("slides", (training("j", "400", 400), training("j", "800", 800)), Shape(1, 4), "", ("trunk",)),
               Cluster(**GPU, python="/opt/upmix/bin/python")),
    "torchrun": (Job("wide", (training("wide"),), Shape(2, 8)),
                 Cluster(**GPU, launcher="torchrun", cpus_per_gpu=8, setup=("ulimit -l unlimited",))),
    "wheels": (Job("run", (training("run"),), Shape(2, 8)), Cluster(**GPU, wheels="$HOME/wheels")),
    "pyxis": (Job("run", (training("run"),), Shape(1, 1)), Cluster(
        **GPU,
        container={"kind": "pyxis", "image": "nvcr.io#nvidia/pytorch:25.10-py3", "mounts": ("/data:/data",),
                   "options": ("--no-container-mount-home",)})),
    "command": (Job("copies", Command(("upcycle", "runs/dense", "--name", "more")), Shape(1, 1), "", ("dense",)),
                "example_h100"),
}


def text_of(name: str) -> str:
    job, cluster = JOBS[name]
    return render(job, load_cluster(cluster) if isinstance(cluster, str) else cluster, PLACES)


@pytest.mark.parametrize("name", JOBS)
def test_scripts_are_the_golden_files(name: str) -> None:
    """To accept a change: UPMIX_WRITE_GOLDEN=1 pytest tests/slurm/test_script.py, and read the difference."""
    golden = GOLDEN / f"{name}.sh"
    if os.environ.get("UPMIX_WRITE_GOLDEN"):
        golden.parent.mkdir(exist_ok=True)
        golden.write_text(text_of(name))
    assert text_of(name) == golden.read_text()
    assert subprocess.run(["bash", "-n", golden]).returncode == 0


def bash(folder: Path, job: Job, *, environment: dict[str, str], **fields) -> subprocess.CompletedProcess:
    """Run a script by bash alone, with an srun that runs one task and an scontrol that notes what it was told."""
    programs = folder / "programs"
    programs.mkdir()
    (programs / "srun").write_text('#!/bin/bash\nwhile [[ $1 == --* ]]; do shift; done\nexec "$@"\n')
    (programs / "scontrol").write_text('#!/bin/bash\necho "scontrol $*"\nexit 1\n')
    for program in programs.iterdir():
        program.chmod(0o755)
    runs = folder / "runs"
    places = Places(str(folder), str(runs), str(runs / "submission" / "job"), str(folder / "code"))
    for part in ("starts", "log", "recipes"):
        (runs / "submission" / "job" / part).mkdir(parents=True)
    for each in job.trainings:
        (Path(places.job) / "recipes" / f"{each.run}.yaml").write_text(each.recipe)
    script = folder / "job.sh"
    script.write_text(render(job, Cluster(**GPU, python=str(TRAINER), **fields), places))
    return again(folder, environment)


def again(folder: Path, environment: dict[str, str]) -> subprocess.CompletedProcess:
    """Run the script that `bash` wrote once more."""
    of_slurm = {"SLURM_JOB_ID": "7", "SLURM_NNODES": "1", "SLURM_JOB_NODELIST": "node1"}
    of_trainer = {"STEP_SECONDS": "0", "CALLS": str(folder / "calls")}
    path = {"PATH": f"{folder / 'programs'}:{os.environ['PATH']}"}
    return subprocess.run(["bash", "--noprofile", folder / "job.sh"], capture_output=True, text=True, timeout=30,
                          errors="surrogateescape", env=os.environ | path | of_slurm | of_trainer | environment)


def calls(folder: Path) -> list[list[str]]:
    return [json.loads(line)[0] for line in (folder / "calls").read_text().splitlines()]


def test_a_run_that_is_finished_is_not_started_again(tmp_path: Path) -> None:
    job = Job("run", (training("run", num_steps=3),), Shape(1, 1))
    done = bash(tmp_path, job, environment={})
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "runs/run/DONE").exists()
    assert len(calls(tmp_path)) == 1
    second = again(tmp_path, {})
    assert second.returncode == 0 and "finished already" in second.stdout
    assert len(calls(tmp_path)) == 1


def test_a_users_mistake_is_not_tried_again(tmp_path: Path) -> None:
    done = bash(tmp_path, Job("run", (training("run"),), Shape(1, 1)), environment={"FAILS": "2"})
    assert done.returncode == 2 and "scontrol" not in done.stdout


def test_the_last_task_of_an_array_is_requeued_by_its_index(tmp_path: Path) -> None:
    """SLURM gives it the array's own id as SLURM_JOB_ID."""
    job = Job("cells", (training("a"), training("b")), Shape(1, 1), "grid")
    done = bash(tmp_path, job, environment={"FAILS": "1", "SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "1"})
    assert "scontrol requeue 7_1\n" in done.stdout and done.returncode == 1
    assert calls(tmp_path)[0][3:6] == [str(tmp_path / "runs/submission/job/recipes/b.yaml"), "--name", "b"]


def test_starts_without_a_checkpoint_end_after_the_limit(tmp_path: Path) -> None:
    job = Job("run", (training("run"),), Shape(1, 1))
    outcomes = [bash(tmp_path, job, environment={"FAILS": "1"}, restarts_without_progress=1)]
    outcomes += [again(tmp_path, {"FAILS": "1"}) for _ in range(2)]
    assert "given up: 2 starts from step 0" in outcomes[1].stdout
    assert ["scontrol requeue" in each.stdout for each in outcomes] == [True, False, False]
    assert len(calls(tmp_path)) == 2


def test_links_of_a_chain_end_well_only_before_the_last_one(tmp_path: Path) -> None:
    """A link that was told to stop hands on; an unfinished last link must not let followers start."""
    job = Job("run", (training("run"),), Shape(1, 1))
    done = bash(tmp_path, job, environment={"FAILS": "1"}, requeue=False, links=3)
    assert done.returncode == 1 and "scontrol" not in done.stdout


def texts(unwanted: str, **kinds: tuple[str, ...]) -> st.SearchStrategy[str]:
    return st.text(st.characters(blacklist_characters=unwanted, **kinds), min_size=1, max_size=40)


names = texts("/", blacklist_categories=("Cs", "Cc")).filter(
    lambda name: name.isprintable() and not name.startswith(".") and len(name.encode()) < 150)
paths = texts("/\0\\:", blacklist_categories=("Cs",)).filter(
    lambda name: name.strip(".") and len(name.encode()) < 150)


@given(name=names, folder=paths)
@example(name="a $(touch PWNED) `touch PWNED` ; touch PWNED", folder="x\ny $(touch PWNED)")
@example(name="'; touch PWNED; '", folder="\"; touch PWNED; \"")
@example(name="-n", folder="-rf")
@example(name="${HOME}*?[a]~!#&|<>", folder="é ü 漢\t\n%j")
@settings(max_examples=6, deadline=None)
def test_hostile_names_reach_the_job_unchanged_and_execute_nothing(name: str, folder: str) -> None:
    with tempfile.TemporaryDirectory() as temporary:
        place = Path(temporary).resolve() / folder
        place.mkdir()
        done = bash(place, Job(name, (training(name, num_steps=2),), Shape(1, 1)), environment={})
        assert done.returncode == 0, done.stdout + done.stderr
        runs, job = place / "runs", place / "runs/submission/job"
        place_of_run = ["--name", name, "--runs-dir", str(runs), "--resume"]
        assert calls(place) == [["-m", "framework.cli", "train", f"{job}/recipes/{name}.yaml", *place_of_run]]
        assert (runs / name / "DONE").exists()
        assert not list(Path(temporary).rglob("PWNED"))


@given(arguments=st.lists(st.text(st.characters(blacklist_categories=("Cs",), blacklist_characters="\0"), max_size=30),
                          min_size=1, max_size=4))
@example(arguments=["eval", "a b", "$(touch PWNED)", "", "\n", "*"])
@settings(max_examples=4, deadline=None)
def test_hostile_arguments_of_commands_too(arguments: list[str]) -> None:
    with tempfile.TemporaryDirectory() as temporary:
        place = Path(temporary).resolve()
        done = bash(place, Job("c", Command(("eval", *arguments)), Shape(1, 1)), environment={})
        assert done.returncode == 0, done.stdout + done.stderr
        assert calls(place) == [["-m", "framework.cli", "eval", *arguments]]
        assert not list(place.rglob("PWNED"))
