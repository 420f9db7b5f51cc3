"""Tasks inside runs: when, on which layouts, what a stop and a resume make of them, and what a recipe may ask for."""

import signal

import pytest

from framework.errors import UserError
from framework.recipe import load_recipe
from framework.tasks.conditions import require_possible, require_token_choice
from framework.training.checkpoint import steps_present
from framework.training.preconditions import require_packages
from tests.framework.tasks.stand_ins import Stub
from tests.framework.training.test_whole_runs import TWO, die_at
from tests.helpers.runs import Whole, all_rows, rows, run, write_recipe

ON = ("tasks.names=stub", "tasks.every=2")
STOP = 128 + signal.SIGUSR1


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    return write_recipe(tmp_path_factory.mktemp("tasks"), data={"micro_batch_size": 2, "seq_len": 32},
                        training={"steps": 4, "eval_every": 2})


def stubbed(patch, *then) -> None:
    """Without lm-eval; then what else is to be changed."""
    patch.setattr("framework.training.preconditions.require_package", lambda *_: None)
    patch.setattr("framework.training.setup.load_tasks", lambda names, path, num_fewshot, seq_len: Stub())
    if then:
        then[0](patch, *then[1:])


class Stubbed(Whole):
    """Undisturbed runs with tasks, each made once."""

    def __call__(self, *overrides: str):
        if overrides not in self.made:
            path = self.recipe.parent / "whole" / str(len(self.made))
            assert run(self.ranks, self.recipe, path, *ON, *overrides, before=(stubbed,)) == 0
            self.made[overrides] = path
        return self.made[overrides]


@pytest.fixture(scope="module")
def whole(ranks, recipe):
    return Stubbed(ranks, recipe)


@pytest.mark.parametrize("layout", ["parallel.dp_shard=2 parallel.ep=2", "parallel.pp=2"])
def test_figures_stand_beside_evaluations_on_any_layout(whole, layout):
    one, other = whole(), whole(*layout.split())
    kinds = [(row["kind"], row["step"]) for row in all_rows(other) if row["kind"] in ("eval", "tasks")]
    assert kinds == [("eval", 2), ("tasks", 2), ("eval", 4), ("tasks", 4)]
    for mine, theirs in zip(rows(other, "tasks"), rows(one, "tasks"), strict=True):
        assert mine.keys() == {"kind", "step", "stub/pairs", "stub/rolling", "stub/greedy", "stub/length,some"}
        assert mine["stub/pairs"] == pytest.approx(theirs["stub/pairs"], rel=1e-4)
        assert mine["stub/rolling"] == pytest.approx(theirs["stub/rolling"], rel=1e-4)
    assert rows(one, "tasks")[0]["stub/pairs"] < rows(one, "tasks")[1]["stub/pairs"] < 0


def test_tasks_change_nothing_of_the_training(ranks, recipe, whole, tmp_path):
    assert run(ranks, recipe, tmp_path / "without") == 0
    assert rows(tmp_path / "without") == rows(whole()) and rows(tmp_path / "without", "tasks") == []


SCORING = ("framework.tasks.scoring", "Scorer._forward")
MOMENTS = {  # where, call and rank of the signal: rows of step 2 that are there then
    "in the tasks": (*SCORING, 2, 1, ["eval"]),
    "in the evaluation before them": ("framework.data.batches", "ValidationData.batch", 2, 1, []),
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_what_a_stop_prevents_the_resume_makes_first(ranks, recipe, whole, tmp_path, moment):
    path, (*where, present) = tmp_path / "stopped", MOMENTS[moment]
    assert run(ranks, recipe, path, *ON, *TWO, before=(stubbed, die_at, *where, signal.SIGUSR1)) == STOP
    assert steps_present(path / "checkpoints") == [2]
    assert [row["kind"] for row in all_rows(path) if row["step"] == 2 and row["kind"] in ("eval", "tasks")] == present
    assert run(ranks, recipe, path, *ON, *TWO, resume=True, before=(stubbed,)) == 0
    assert all_rows(path) == all_rows(whole(*TWO))


def test_a_recipe_with_tasks_needs_the_package(recipe, monkeypatch, upmix, tmp_path):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.chdir(tmp_path)
    message = "tasks.names needs the package lm-eval: pip install 'upmix[hf]'"
    with pytest.raises(UserError, match=message.replace("[", r"\[")):
        require_packages(load_recipe(str(recipe), ON).recipe)
    assert upmix("train", recipe, *ON, "--name", "run") == (2, "", f"upmix: {message}\n")
    assert not (tmp_path / "runs").exists()


ASKED = {"a, b": ("a", "b"), "[a, b]": ("a", "b"), "null": (), "mmlu": ("mmlu",)}


@pytest.mark.parametrize("text", ASKED)
def test_names_are_a_list_or_joined_by_commas(recipe, text):
    assert load_recipe(str(recipe), [f"tasks.names={text}"]).recipe.tasks.names == ASKED[text]


ROUTED = {
    "expert_choice": ("model.moe.router=expert_choice", "choose among all tokens"),
    "dropping": ("model.moe.capacity_in_evaluation=true model.moe.capacity_factor=1", "drop tokens in evaluation"),
}


@pytest.mark.parametrize("case", ROUTED)
def test_models_that_padding_would_change_are_refused(recipe, case):
    overrides, reason = ROUTED[case]
    loaded = load_recipe(str(recipe), [*overrides.split(), "model.moe.load_balance_weight=0"])
    with pytest.raises(UserError, match=f"runs/x: .*{reason}.*; allowed: "):
        require_token_choice(loaded.architecture, "runs/x")
    require_token_choice(load_recipe(str(recipe)).architecture, "runs/x")


class Task:
    """A task of lm-eval, as far as its conditions are looked at."""

    def __init__(self, kind: str, unsafe: bool = False, **settings) -> None:
        self.config, self.UNSAFE_CODE = {"output_type": kind, "generation_kwargs": settings}, unsafe

    def get_config(self, key: str):
        return self.config[key]


REFUSED = {
    "it samples": Task("generate_until", temperature=0.7, max_gen_toks=8),
    "it samples; allowed: greedy": Task("generate_until", do_sample=True, max_gen_toks=8),
    "up to 256 tokens, which leave no room": Task("generate_until"),
    "it runs code": Task("generate_until", unsafe=True, max_gen_toks=8),
    "its output_type is audio": Task("audio"),
}


@pytest.mark.parametrize("reason", REFUSED)
def test_tasks_that_cannot_be_are_refused(reason):
    with pytest.raises(UserError, match=f"task humanly: .*{reason}.*"):
        require_possible("humanly", REFUSED[reason], 64)
    require_possible("humanly", Task("generate_until", temperature=0.7, do_sample=False, max_tokens=63), 64)
