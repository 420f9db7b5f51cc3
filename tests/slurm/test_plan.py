"""From recipes, sweeps and chains to jobs."""

from pathlib import Path

import pytest

from framework.errors import UserError
from framework.recipe import load_recipe
from framework.sweep import Arguments, load_sweep
from slurm.chain import is_chain, plan_chain
from slurm.jobs import Command
from slurm.plan import plan_run, plan_sweep
from slurm.shape import Shape

SLIDES = ("optim.schedule=trapezoid", "optim.warmup_steps=2", "training.steps=30", "training.slides=[10,20]")


def test_a_run_is_one_job_whose_recipe_loads_to_the_same(tmp_path: Path) -> None:
    loaded = load_recipe("quickstart", ["training.steps=7"])
    job, = plan_run(loaded, "mine", 8).jobs
    training, = job.trainings
    assert (job.shape, training.folder, training.num_steps, training.slide) == (Shape(1, 2), "mine", 7, None)
    (tmp_path / "sent.yaml").write_text(training.recipe)
    assert load_recipe(str(tmp_path / "sent.yaml")).recipe == loaded.recipe


def test_slides_come_behind_their_trunk_as_an_array() -> None:
    trunk, slides = plan_run(load_recipe("quickstart", SLIDES), "wsd", 8).jobs
    assert (trunk.trainings[0].slide, slides.after) == ("none", (trunk.name,))
    assert [(each.folder, each.num_steps, each.slide) for each in slides.trainings] == [
        ("wsd-slide-10", 10, "10"), ("wsd-slide-20", 20, "20")]


def test_a_sweep_is_an_array_of_what_is_not_finished() -> None:
    sweep = load_sweep("quickstart", Arguments(over=("optim.lr=1e-3,2e-3,4e-3",), name="grid"))
    job, = plan_sweep(sweep, 8, [sweep.cells[1].name]).jobs
    assert [training.run for training in job.trainings] == [sweep.cells[0].name, sweep.cells[2].name]
    assert job.runs_dir == "grid" and job.is_array
    assert plan_sweep(sweep, 8, [cell.name for cell in sweep.cells]).jobs == ()


def test_slides_of_a_sweeps_cell_wait_for_that_cell_alone() -> None:
    sweep = load_sweep("quickstart", Arguments(overrides=SLIDES, over=("optim.lr=1e-3,2e-3",), name="grid"))
    jobs = plan_sweep(sweep, 8).jobs
    assert len(jobs) == 4 and len({job.name for job in jobs}) == 4
    assert [job.after for job in jobs] == [(), (jobs[0].name,), (), (jobs[2].name,)]
    assert all(job.runs_dir == "grid" for job in jobs)


def chain(folder: Path, text: str) -> str:
    (folder / "pipeline.yaml").write_text("chain:\n" + text)
    return str(folder / "pipeline.yaml")


def test_steps_of_a_chain_wait_for_the_one_before_or_those_they_name(tmp_path: Path) -> None:
    source = chain(tmp_path, """
  - {name: dense, train: upcycling/laptop_dense, set: {training.steps: 4, optim: {lr: 1e-3}}}
  - {name: copies, run: "upcycle runs/dense --name 'a b'", ranks: 4}
  - {name: moe, train: upcycling/laptop_copy}
  - {name: compare, run: report runs/dense, after: [dense, moe]}
""")
    assert is_chain(source) and not is_chain("quickstart")
    submission = plan_chain(source, None, 4)
    dense, copies, moe, compare = submission.jobs
    assert submission.name == "pipeline"
    assert [job.after for job in submission.jobs] == [(), ("dense",), ("copies",), ("dense", "moe")]
    assert copies.work == Command(("upcycle", "runs/dense", "--name", "a b")) and copies.shape == Shape(1, 4)
    assert dense.trainings[0].num_steps == 4 and "lr: 0.001" in dense.trainings[0].recipe
    assert moe.trainings[0].folder == "moe"


def test_what_follows_a_trunk_with_slides_waits_for_the_slides(tmp_path: Path) -> None:
    text = f"  - {{name: wsd, train: quickstart, set: {{{', '.join(each.replace('=', ': ') for each in SLIDES)}}}}}\n"
    jobs = plan_chain(chain(tmp_path, f"{text}  - {{name: all, run: report runs/wsd}}\n"), None, 8).jobs
    assert [job.after for job in jobs] == [(), ("wsd-trunk",), ("wsd-slides",)]


@pytest.mark.parametrize(("text", "said"), [
    ("  - {name: a}\n", "either `train` or `run`"),
    ("  - {name: a, train: quickstart, run: eval}\n", "either `train` or `run`"),
    ("  - {name: a/b, run: eval}\n", "a plain name for a folder"),
    ("  - {name: a, run: \"eval 'x\"}\n", "a command that a shell can split"),
    ("  - {name: a, run: eval}\n  - {name: a, run: eval}\n", "step 2 is named 'a'"),
    ("  - {name: a, run: eval, after: [b]}\n", "a comes after 'b'"),
    ("  - {name: a, train: nowhere}\n", "a: no recipe 'nowhere'"),
    ("  - {name: a, train: quickstart, set: {optim.lr: fast}}\n", "optim.lr: given 'fast'"),
    ("  - {name: a, trian: quickstart}\n", "unknown key; nearest: train"),
    ("  []\n", "at least 1 item"),
])
def test_mistakes_in_chains_are_one_line(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(UserError) as error:
        plan_chain(chain(tmp_path, text), None, 8)
    assert said in str(error.value) and "\n" not in str(error.value)


def test_a_chain_takes_no_fields(tmp_path: Path, upmix) -> None:
    source = chain(tmp_path, "  - {name: a, run: eval}\n")
    code, _, err = upmix("submit", source, "optim.lr=1", "--cluster", "example_h100", "--dry-run")
    assert code == 2 and "a chain takes no fields" in err
