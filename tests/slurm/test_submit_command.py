"""`upmix submit` without a SLURM: dry runs, refusals, hostile words, a login node behind ssh."""

import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from framework.recipe import load_recipe

CHECKOUT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def cluster_file(**changes: object) -> str:
    Path("mine.yaml").write_text(yaml.safe_dump({"gpus_per_node": 4, "partition": "gpu"} | changes))
    return "mine.yaml"


def test_a_dry_run_shows_script_and_recipe_and_writes_nothing(upmix, folder: Path) -> None:
    code, out, err = upmix("submit", "quickstart", "training.steps=7", "--cluster", "example_h100", "--dry-run")
    assert code == 0 and "nothing was submitted" in err
    assert "#SBATCH --nodes=1\n#SBATCH --ntasks-per-node=2\n#SBATCH --gpus-per-node=h100:2\n" in out
    assert f"### {folder}/runs/quickstart/job/job.sh" in out
    recipe = out.partition("recipes/quickstart.yaml\n\n")[2]
    assert yaml.safe_load(recipe)["training"]["steps"] == 7
    code, out, _ = upmix("submit", "quickstart", "training.steps=7", "--cluster", "example_h100", "--dry-run", "--json")
    files = json.loads(out)["files"]
    assert set(files) == {"job.sh", "recipes/quickstart.yaml"} and files["recipes/quickstart.yaml"] == recipe[:-1]
    assert not list(folder.iterdir())


@pytest.mark.parametrize(("words", "said"), [
    (["quickstart", "parallel.dp_shard=6", "parallel.ep=2", "data.batch_size=12"], "6 ranks = 1 x 4 GPUs + 2 ranks"),
    (["quickstart", "--name", "a/b"], "allowed: a plain name for a folder"),
    (["quickstart", "--where", "optim.lr > 0"], "allowed: with --over, --seeds or a sweep's file"),
    (["quickstart", "optim.lr=fast"], "optim.lr: given 'fast'"),
    (["nowhere"], "no recipe 'nowhere'"),
    (["rlrs/moe_rates"], "neither steps nor tokens is given"),
    (["quickstart", "--runs-dir", "a:b"], "PYTHONPATH is split at it"),
    (["quickstart", "--runs-dir", "a\\b"], "sbatch reads it"),
    (["quickstart", "--remote", "ann@login"], "workdir is not given"),
])
def test_mistakes_are_one_line(upmix, words: list[str], said: str) -> None:
    code, out, err = upmix("submit", *words, "--cluster", cluster_file(), "--dry-run")
    assert code == 2 and out == "" and err.count("\n") == 1 and said in err, err


def test_where_no_slurm_is_submitting_says_so_and_leaves_no_record(upmix, monkeypatch, folder: Path) -> None:
    (folder / "programs").mkdir()
    for name in ("sh", "rm", "mkdir", "git"):
        (folder / "programs" / name).symlink_to(shutil.which(name))
    monkeypatch.setenv("PATH", str(folder / "programs"))
    code, _, err = upmix("submit", "quickstart", "--cluster", cluster_file())
    assert code == 2 and "no SLURM answers" in err and "or --remote" in err
    assert upmix("status", "--json")[1] == json.dumps({"rows": [], "silence": None}) + "\n"


def test_a_run_that_is_there_needs_resume_and_one_that_is_finished_nothing(upmix, folder: Path) -> None:
    run = folder / "runs" / "quickstart"
    run.mkdir(parents=True)
    code, out, _ = upmix("show", "quickstart", "--json")
    (run / "recipe.yaml").write_text(yaml.safe_dump(json.loads(out)["recipe"]))
    words = ("submit", "quickstart", "--cluster", cluster_file(), "--dry-run")
    code, _, err = upmix(*words)
    assert code == 2 and "--resume" in err
    assert upmix(*words, "--resume")[0] == 0
    code, _, err = upmix(*words, "optim.lr=1", "--resume")
    assert code == 2 and "a resume may not change optim.lr" in err
    (run / "DONE").write_text("100000\n")
    code, out, err = upmix(*words, "--resume")
    assert code == 0 and "finished already" in err and out == ""


def test_a_sweep_does_not_go_on_with_runs_of_another_recipe(upmix, folder: Path) -> None:
    words = ("quickstart", "--over", "optim.lr=1e-3,2e-3", "--name", "grid")
    code, out, _ = upmix("sweep", "show", *words, "--json")
    cell = folder / "runs/grid" / json.loads(out)["cells"][0]["name"]
    cell.mkdir(parents=True)
    code, out, _ = upmix("show", "quickstart", "optim.lr=5", "--json")
    (cell / "recipe.yaml").write_text(yaml.safe_dump(json.loads(out)["recipe"]))
    code, _, err = upmix("submit", *words, "--cluster", cluster_file(), "--dry-run")
    assert code == 2 and f"{cell}: a resume may not change optim.lr from 5.0 to 0.001" in err
    (folder / "runs/grid/recipe.yaml").write_text("")
    code, _, err = upmix("submit", *words, "--cluster", cluster_file(), "--dry-run")
    assert code == 2 and "a run, no folder of a sweep's runs" in err


def test_shapes_of_a_sweep_get_an_array_each(upmix) -> None:
    code, out, _ = upmix("submit", "quickstart", "--over", "parallel.dp_shard=1,2,4", "--over", "optim.lr=1e-3,2e-3",
                         "parallel.ep=1", "--name", "grid", "--cluster", cluster_file(array_limit=2), "--dry-run")
    assert code == 0
    assert out.count("#SBATCH --array=0-1%2") == 3
    assert [f"cells_on_{world}" in out for world in (1, 2, 4)] == [True] * 3


@given(value=st.text(st.characters(blacklist_categories=("Cs", "Cc", "Cn")), max_size=40))
@example(value="$(touch PWNED)\n`touch PWNED`\t'\"; touch PWNED #")
@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_hostile_values_reach_the_recipe_unchanged(upmix, folder: Path, value: str) -> None:
    stated = f"description={json.dumps(value, ensure_ascii=False)}"
    code, out, err = upmix("submit", "quickstart", stated, "--cluster", cluster_file(), "--dry-run")
    if code:
        assert code == 2 and err.count("\n") == 1, err
        return
    (folder / "sent.yaml").write_text(out.partition("recipes/quickstart.yaml\n\n")[2], encoding="utf-8")
    assert load_recipe(str(folder / "sent.yaml")).recipe.description == value
    assert not list(folder.rglob("PWNED"))


def test_it_starts_at_once() -> None:
    """Nothing of PyTorch is imported, whose import alone takes seconds."""
    program = ("import sys; from framework.cli import main; sys.argv = ['upmix', *{words!r}]\n"
               "try: main()\nexcept SystemExit as end: assert not end.code, end.code\n"
               "assert 'torch' not in sys.modules")
    for words in (["submit", "quickstart", "--cluster", "example_h100", "--dry-run"], ["status"]):
        done = subprocess.run([sys.executable, "-c", program.format(words=words)], capture_output=True, text=True,
                              env=os.environ | {"PYTHONPATH": str(CHECKOUT)})
        assert done.returncode == 0, done.stderr


def test_a_login_node_needs_ssh_tar_and_slurm_alone(upmix, folder: Path, monkeypatch) -> None:
    """The other side is a shell of this machine whose sbatch and squeue are stood in for."""
    programs, far = folder / "programs", folder / "far $(touch PWNED)"
    programs.mkdir()
    far.mkdir()
    for name, text in {
        "ssh": '[ "$3" = ann@login ] || exit 255; shift 4; cd / && exec sh -c "$*"',
        "sbatch": f"(pwd; echo \"$@\") >> {shlex.quote(str(folder / 'calls'))}; echo 41",
        "squeue": "exit 0", "sacct": "exit 1",
    }.items():
        (programs / name).write_text(f"#!/bin/bash\n{text}\n")
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    where = ("--cluster", cluster_file(workdir=str(far)), "--remote", "ann@login")
    code, out, err = upmix("submit", "quickstart", *where, "--json")
    assert code == 0, err
    job = far / "runs/quickstart/job"
    assert json.loads(out)["jobs"] == [{"name": "quickstart", "ids": ["41"], "tasks": 1}]
    assert {path.name for path in job.iterdir()} == {"job.sh", "recipes", "submission.json", "starts", "log"}
    code_of_job, = (far / "runs/.code").iterdir()
    assert (code_of_job / "framework/cli/__main__.py").exists() and (code_of_job / ".snapshot/commit").exists()
    assert f"code={shlex.quote(str(code_of_job))}" in (job / "job.sh").read_text()
    assert (folder / "calls").read_text().splitlines()[0] == str(far)
    code, out, err = upmix("status", *where, "--json")
    row, = json.loads(out)["rows"]
    assert code == 0 and (row["name"], row["job"], row["state"]) == ("quickstart", "41", "UNKNOWN")
    assert not (folder / "runs").exists() and not list(folder.rglob("PWNED"))
