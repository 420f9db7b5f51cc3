"""Slides: what follows from a recipe, and that each is bit for bit the run of its length, undisturbed or killed."""

import os
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from framework.command import UPMIX
from framework.errors import UserError
from framework.optim import decay_shape, last_full_step
from framework.recipe import load_recipe
from framework.recipe.schema import Optim
from framework.training import Admission, admit_parts, list_slides, parts_of, slide_recipe, under_way
from framework.training.branch import branch_off
from framework.training.parts import Part
from tests.framework.training.test_whole_runs import assert_same, die_at, signal_at
from tests.helpers.runs import rows, run, write_recipe

TRAPEZOID = {"schedule": "trapezoid", "decay_fraction": 0.5, "final_lr_fraction": 0.0}
LAYOUTS = {"one rank": (), "two expert-parallel ranks": ("parallel.dp_shard=2", "parallel.ep=2")}
# Three steps of 4 sequences of 16 tokens, then 8 sequences a step: 192 + 128 n tokens after 3 + n steps.
LENGTHS = {
    "steps": ("training.steps=9", "training.slides=[4,6]"),
    "tokens": ("training.tokens=960", "training.slides=[300,512]", "data.batch_ramp={129: 4}"),
}


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    """The recipe's file. Of the trunk's own checkpoints, every second step's, one is kept."""
    return write_recipe(tmp_path_factory.mktemp("slides"), optim=TRAPEZOID, training={"eval_every": 2},
                        checkpoint={"every": 2, "keep_last": 1})


@pytest.fixture
def load(recipe):
    """Loads the recipe with overrides."""
    return lambda *overrides: load_recipe(str(recipe), overrides)


def train_on_rank(recipe: Path, path: Path, overrides: tuple, resume: bool, only: str | None, before: tuple | None):
    """What `upmix train` does on a rank that has joined; `before` is a change to make first."""
    from framework.training import meet, train_parts
    from framework.training.signals import StopRequest

    os.environ["UPMIX_DATA"] = str(recipe.parent / "data")
    with pytest.MonkeyPatch.context() as patch:
        if before is not None:
            before[0](patch, *before[1:])
        parts, device = parts_of(load_recipe(str(recipe), overrides), path, only), torch.device("cpu")
        with StopRequest() as request:
            return train_parts(parts, resume, device, meet(parts[0].loaded.recipe.parallel, device), request)


def train(ranks, recipe, path, *overrides, resume=False, only=None, before=None) -> int:
    num_ranks = 2 if "parallel.dp_shard=2" in overrides else 1
    code, = set(ranks.run(num_ranks, train_on_rank, recipe, path, overrides, resume, only, before, timeout=120))
    return code


class Undisturbed:
    """Runs of one length by overrides, without slides, each made once."""

    def __init__(self, ranks, recipe: Path) -> None:
        self.ranks, self.recipe, self.made = ranks, recipe, {}

    def __call__(self, *overrides: str) -> Path:
        if overrides not in self.made:
            path = self.recipe.parent / "undisturbed" / str(len(self.made))
            assert run(self.ranks, self.recipe, path, *overrides) == 0
            self.made[overrides] = path
        return self.made[overrides]


@pytest.fixture(scope="module")
def undisturbed(ranks, recipe):
    """Runs without slides."""
    return Undisturbed(ranks, recipe)


def lengths_of(unit: str) -> dict[str, int]:
    """Last step of the trunk and of each slide, by the end of its folder's name."""
    return {"steps": {"": 9, "-slide-4": 4, "-slide-6": 6}, "tokens": {"": 9, "-slide-300": 4, "-slide-512": 6}}[unit]


def assert_all_same(path: Path, undisturbed: Undisturbed, unit: str, layout: tuple[str, ...]) -> None:
    """Every slide, and on one rank the trunk too, is the run of its length."""
    others = LENGTHS[unit][2:]
    for end, last_step in list(lengths_of(unit).items())[bool(layout):]:
        length = end.removeprefix("-slide-") or LENGTHS[unit][0].partition("=")[2]
        reference = undisturbed(f"training.{unit}={length}", *others, *layout)
        ours = path.with_name(path.name + end)
        assert_same(ours, reference, last_step)
        assert (ours / "DONE").read_text() == (reference / "DONE").read_text() == f"{last_step}\n"


@given(st.integers(1, 400), st.floats(0, 1), st.integers(0, 50), st.integers(1, 400))
@settings(max_examples=20, deadline=None)
def test_a_slide_leaves_at_the_last_step_of_the_full_rate(num_steps, fraction, warmup_steps, longer):
    optim = Optim(schedule="trapezoid", decay_fraction=fraction, warmup_steps=warmup_steps)
    full = [step for step in range(num_steps + 1) if decay_shape(optim, step, num_steps) == 1]
    branch_step = last_full_step(optim, num_steps)
    assert full == list(range(branch_step + 1))
    assert last_full_step(optim, num_steps + longer) >= branch_step


def test_slides_in_tokens_follow_the_batch_ramp(load):
    found = list_slides(load(*LENGTHS["tokens"]), "a")
    assert [(slide.name, slide.num_steps, slide.branch_step) for slide in found] == [
        ("a-slide-300", 4, 2), ("a-slide-512", 6, 3)]
    assert {slide.unit for slide in found} == {"tokens"}


def test_a_slides_recipe_is_the_trunks_with_its_length(load):
    loaded = load(*LENGTHS["steps"])
    short = slide_recipe(loaded, list_slides(loaded, "a")[0])
    assert short.recipe == load("training.steps=4").recipe
    assert str(short.origins["training.steps"]) == "a slide, command line"


@pytest.mark.parametrize(("given", "said"), [
    ("training.slides=[4] optim.schedule=cosine", "training.slides and optim.schedule.*given with schedule cosine"),
    ("training.slides=[4] optim.decay_fraction=0", "optim.decay_fraction.*given with decay_fraction 0"),
    ("training.slides=[6,4]", "given .6, 4.; allowed: rising lengths"),
    ("training.slides=[4,4]", "given .4, 4.; allowed: rising lengths"),
    ("training.slides=[4,9]", "a slide of 9 steps in a run of 9; allowed: shorter ones, in steps"),
    ("training.slides=[4] training.steps=null", "without a length"),
    ("training.slides=[4] optim.warmup_steps=4", "4 steps .4 steps. leave no step left to decay in"),
    ("training.slides=[4] optim.decay_fraction=1 optim.warmup_steps=0", "leave no step at full rate"),
])
def test_slides_that_cannot_be_are_one_line(load, given, said):
    changes = given.split()
    length = [] if "training.steps=null" in changes else ["training.steps=9"]
    with pytest.raises(UserError, match=said):
        list_slides(load(*length, *changes), "a")


def test_a_later_length_in_tokens_changes_the_unit_of_inherited_slides(recipe, tmp_path):
    own = {"extends": str(recipe), "training": {"steps": 9, "slides": [4]}}
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(own))
    with pytest.raises(UserError, match="a slide of 4 tokens in a run of 3; allowed: shorter ones, in tokens"):
        load_recipe(str(tmp_path / "own.yaml"), ["training.tokens=3"])


@pytest.mark.parametrize(("unit", "layout"), [("tokens", "one rank"), ("steps", "two expert-parallel ranks")])
def test_every_slide_is_bit_for_bit_the_run_of_its_length(ranks, recipe, undisturbed, tmp_path, unit, layout):
    path = tmp_path / "trunk"
    assert train(ranks, recipe, path, *LENGTHS[unit], *LAYOUTS[layout]) == 0
    assert_all_same(path, undisturbed, unit, LAYOUTS[layout])
    assert {each.name for each in (path / "checkpoints").iterdir()} == {"step_2", "step_3", "step_9"}
    assert {each.name for each in tmp_path.iterdir()} == {path.name + end for end in lengths_of(unit)}
    assert not list(path.glob(".trunk*"))
    slide = tmp_path / ("trunk-slide-6" if unit == "steps" else "trunk-slide-512")
    made = {each.name for each in slide.iterdir()}
    assert made >= {"data.json", "tokenizer.model", "loss.png", "code", "tensorboard", "DONE"}
    assert [row["lr"] for row in rows(slide)][2:] == pytest.approx([0.01, 0.02 / 3, 0.01 / 3, 0.0])


def test_a_resume_goes_on_wherever_it_was_stopped_or_killed(ranks, recipe, undisturbed, tmp_path):
    from parallel.pool import RankError

    path, unit = tmp_path / "trunk", LENGTHS["tokens"]
    assert train(ranks, recipe, path, *unit, before=(signal_at, 5, 0, signal.SIGUSR1)) == 128 + signal.SIGUSR1
    assert [each.name for each in tmp_path.iterdir()] == ["trunk"]
    parts = parts_of(load_recipe(str(recipe), unit), path)
    assert under_way(parts) is parts[0] and admit_parts(parts, True) is Admission.RESUMED
    # It has passed the steps that both slides branch off, so that one of them can be trained meanwhile.
    assert train(ranks, recipe, path, *unit, only="300") == 0
    assert (tmp_path / "trunk-slide-300" / "DONE").exists() and not (path / "DONE").exists()
    with pytest.raises(UserError, match="trunk-slide-300: the run folder exists"):
        admit_parts(parts[1:2], False)
    assert admit_parts(parts[1:2], True) is Admission.FINISHED
    # Four steps are left of the trunk, then three of the other slide.
    with pytest.raises(RankError, match="without a word|Connection|peer"):
        train(ranks, recipe, path, *unit, resume=True,
              before=(die_at, "framework.training.trainer", "Trainer._forward_backward", 6))
    assert under_way(parts) is parts[2] and (tmp_path / "trunk-slide-512").exists()
    assert train(ranks, recipe, path, *unit, resume=True) == 0
    assert_all_same(path, undisturbed, "tokens", ())
    assert admit_parts(parts, True) is Admission.FINISHED


@pytest.fixture(scope="module")
def finished(ranks, recipe):
    """A trunk alone."""
    path = recipe.parent / "finished" / "trunk"
    assert train(ranks, recipe, path, *LENGTHS["steps"], only="none") == 0
    assert [each.name for each in path.parent.iterdir()] == ["trunk"]
    return path


def test_a_slide_alone_waits_for_its_trunks_checkpoint(finished, load, tmp_path):
    parts = parts_of(load(*LENGTHS["steps"]), tmp_path / "a", "6")
    with pytest.raises(UserError, match="a/checkpoints/step_3: not there.*once the run .*/a has come to step 3"):
        admit_parts(parts, False)
    path = Path(shutil.copytree(finished, tmp_path / "a"))
    assert admit_parts(parts, False) is Admission.FRESH
    (path / "checkpoints" / "step_3" / "state" / "__0_0.distcp").unlink()
    with pytest.raises(UserError, match="step_3: damaged .state/__0_0.distcp is missing"):
        admit_parts(parts, False)


def test_a_slide_of_another_trunk_is_refused(finished, load):
    with pytest.raises(UserError, match="trunk: a resume may not change optim.lr from 0.01 to 0.5"):
        admit_parts(parts_of(load(*LENGTHS["steps"], "optim.lr=0.5"), finished, "4"), False)


@pytest.mark.parametrize(("name", "only", "said"), [
    ("a", "5", "--slide 5: no slide of this recipe; allowed: none, 4, 6"),
    ("a", "all", "--slide all: no slide"), ("a" * 195, None, "too long for the name of its slide"),
])
def test_a_slide_or_a_name_that_cannot_be_is_one_line(load, tmp_path, name, only, said):
    with pytest.raises(UserError, match=said):
        parts_of(load(*LENGTHS["steps"]), tmp_path / name, only)


def test_a_slide_is_named_by_a_number_as_recipes_write_it(load, tmp_path):
    loaded = load("training.tokens=1e9", "training.slides=[1e8, 200_000_000]")
    assert [part.path.name for part in parts_of(loaded, tmp_path / "a", "1e8")] == ["a-slide-100000000"]
    assert [part.path.name for part in parts_of(loaded, tmp_path / "a", "200_000_000")] == ["a-slide-200000000"]


def begin(finished: Path, folder: Path, load) -> tuple[Path, Part]:
    """A copy of the trunk and what `branch_off` takes for its first slide."""
    trunk = Path(shutil.copytree(finished, folder / "trunk"))
    return trunk, parts_of(load(*LENGTHS["steps"]), trunk)[1]


def branch(trunk: Path, part: Part) -> None:
    branch_off(trunk, part.slide, part.loaded, part.path)


def test_a_slide_that_was_submitted_branches_off_too(finished, load, tmp_path):
    trunk, part = begin(finished, tmp_path, load)
    (part.path / "job").mkdir(parents=True)
    (part.path / "job" / "script").touch()
    assert admit_parts((part,), False) is Admission.FRESH
    branch(trunk, part)
    assert (part.path / "job" / "script").exists() and (part.path / "checkpoints" / "step_2" / "manifest.json").exists()
    assert admit_parts((part,), True) is Admission.RESUMED and not list(trunk.glob(".trunk*"))
    shutil.rmtree(trunk / "checkpoints")
    shutil.rmtree(part.path)
    (part.path / "job").mkdir(parents=True)
    with pytest.raises(UserError, match="step_2: not there"):
        admit_parts((part,), False)


def test_files_are_linked_or_else_copied(finished, load, tmp_path, monkeypatch):
    file = Path("checkpoints", "step_2", "state", "__0_0.distcp")
    for linked in (True, False):
        trunk, part = begin(finished, tmp_path / str(linked), load)
        branch(trunk, part)
        assert (part.path / file).samefile(trunk / file) is linked
        assert (part.path / file).read_bytes() == (trunk / file).read_bytes()
        monkeypatch.setattr("framework.training.branch.os.link", refuse_link)


def refuse_link(source: str, target: str) -> None:
    """As a file system without hard links."""
    raise PermissionError(1, "Operation not permitted", source)


def test_rows_end_with_the_branch_though_the_trunk_is_writing_one(finished, load, tmp_path):
    trunk, part = begin(finished, tmp_path, load)
    with (trunk / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "train", "st')
    branch(trunk, part)
    assert rows(part.path) == rows(finished)[:2] and rows(part.path, "eval") == rows(finished, "eval")[:1]


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_kill_at_any_moment_of_branching_leaves_nothing_half_made(finished, load, tmp_path):
    trunk, part = begin(finished, tmp_path / "whole", load)
    branch(trunk, part)
    whole = contents(part.path)
    kills = 0
    for call in range(1, 100):
        trunk, part = begin(finished, tmp_path / str(call), load)
        if not killed_at(call, lambda trunk=trunk, part=part: branch(trunk, part)):
            break
        kills += 1
        assert not part.path.exists() or contents(part.path) == whole
        branch(trunk, part)
        assert contents(part.path) == whole
        assert {each.name for each in trunk.iterdir()} == {each.name for each in finished.iterdir()}
    assert kills >= 20


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def killed_at(call: int, function) -> bool:
    """Run a function in a child that is killed before its so-manieth change to a folder; whether it was."""
    if (child := os.fork()) == 0:
        calls = 0

        def count(event: str, arguments: tuple) -> None:
            nonlocal calls
            if event in ("os.link", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "shutil.copyfile"):
                calls += 1
                if calls == call:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(count)
        function()
        os._exit(0)
    return os.waitpid(child, 0)[1] == signal.SIGKILL


TINY = {"model": {"pattern": "*", "d_model": 16, "vocab_size": 384, "attention": {"num_heads": 2}},
        "data": {"seq_len": 16, "batch_size": 4}, "training": {"steps": 201},
        "optim": {"schedule": "trapezoid", "warmup_steps": 30, "decay_fraction": 0.05}}


def test_the_commands_of_the_docs(recipe, tmp_path, monkeypatch, capsys):
    page = Path(__file__).parents[3] / "docs" / "training.md"
    section = page.read_text().partition("\n### Slides\n")[2].partition("\n#")[0]
    commands = [shlex.split(line, comments=True) for line in section.splitlines() if line.startswith("    upmix ")]
    assert [command[1] for command in commands] == ["show", "train", "train", "train"]
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(TINY | {"data": TINY["data"] | {
        "corpus": str(recipe.parent / "corpus"), "validation_fraction": 0.2}}))
    monkeypatch.chdir(tmp_path)
    for command in commands:
        command[2] = "tiny.yaml"
        done = subprocess.run([*UPMIX, *command[1:]],
                              capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        said = done.stdout if command[1] == "show" else done.stderr
        assert command[1] == "train" or "tiny-slide-100 100 steps; branches off after step 95" in " ".join(said.split())
    assert said == "runs/long-slide-200: finished already\n"
    assert {path.name for path in (tmp_path / "runs").iterdir()} == {"long", "long-slide-100", "long-slide-200"}
