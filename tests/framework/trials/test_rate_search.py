"""The search for relative rates: its pure part on synthetic losses, its folder through interruptions, a real one."""

import csv
import json
import math
import shutil
import signal
import subprocess
import time
from fractions import Fraction

import psutil
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from framework.command import UPMIX
from framework.errors import UserError
from framework.recipe import load_recipe
from framework.trials.rate_fields import find_fields
from framework.trials.rate_search import FACTORS, Search, replay
from framework.trials.rate_tuning import tune
from framework.trials.runs import DIVERGED, Trial, loss_of

MODEL = {"pattern": "*E", "d_model": 16, "vocab_size": 300, "attention": {"num_heads": 2},
         "moe": {"num_experts": 4, "top_k": 1, "d_expert": 16}}
OPTIM = {"lr": 1e-2, "final_lr_fraction": 0.1, "relative_lr": {"norm": {"start": 3.0}}}

optima = st.lists(st.floats(-3, 3), min_size=1, max_size=4)


def whole(search, loss, allowed=lambda field, times: True):
    """The search from nothing to its end, losses coming in one by one: (progress, points in the order tried)."""
    losses, order = {}, []
    while (progress := replay(search, losses, allowed)).wanted:
        point = progress.wanted[-1]
        assert point not in losses
        losses[point] = loss(point)
        order.append(point)
    return progress, order


def bowl(optimum):
    """A separable function of a point, least where the logarithm of each factor is as given."""
    return lambda point: sum((math.log(times) - at) ** 2 for times, at in zip(point, optimum, strict=True))


@settings(max_examples=20, deadline=None)
@given(optima, st.integers(0, 1000))
def test_it_finds_the_optimum_of_separable_functions(optimum, seed):
    """To within half of the smallest factor, beyond which one of the variants is better."""
    progress, order = whole(Search(len(optimum), 50, seed), bowl(optimum))
    assert progress.converged
    assert all(abs(math.log(times) - at) <= math.log(1.5) / 2 + 1e-9
               for times, at in zip(progress.best, optimum, strict=True))
    assert set(order) == set(progress.trials) and len(order) == len(progress.trials)


@settings(max_examples=20, deadline=None)
@given(optima, st.integers(0, 1000), st.data())
def test_it_is_the_same_search_whatever_is_known_already(optimum, seed, data):
    """With any part of the losses read again it numbers the trials alike, wants no known one, and ends alike."""
    search, loss = Search(len(optimum), 3, seed), bowl(optimum)
    end, order = whole(search, loss)
    known = {point: loss(point) for point in data.draw(st.sets(st.sampled_from(order)))}
    progress = replay(search, known)
    assert progress.trials == end.trials[:len(progress.trials)]
    assert progress.accepted == end.accepted[:len(progress.accepted)]
    assert not set(progress.wanted) & known.keys()
    assert bool(progress.wanted) == (len(known) < len(order))


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000), st.integers(1, 4), st.integers(0, 2**32))
def test_it_ends_on_any_losses_and_keeps_the_lowest(seed, num_fields, salt):
    """Losses that are mere noise, some of them infinite, are nowhere below the best; a pass gives four at most."""
    def noise(point):
        number = hash((salt, point)) % 100
        return math.inf if number < 20 else float(number)

    search = Search(num_fields, 4, seed)
    progress, order = whole(search, noise)
    assert noise(progress.best) == min(map(noise, order))
    assert len(order) <= 1 + 4 * num_fields * search.num_passes
    kept = list(map(noise, progress.accepted))
    assert kept == sorted(set(kept), reverse=True)


def test_first_batch_is_the_baseline_and_four_variants_and_passes_are_permutations():
    search = Search(5, 3, seed=7)
    wanted = replay(search, {}).wanted
    field = search.order(1)[0]
    assert wanted[0] == search.start() and [point[field] for point in wanted[1:]] == list(FACTORS)
    assert all(sorted(search.order(number)) == list(range(5)) for number in (1, 2, 3))
    assert search.order(1) != search.order(2) and search.order(1) != Search(5, 3, seed=8).order(1)


def test_a_value_that_cannot_be_is_left_out():
    progress, order = whole(Search(1, 20, 0), bowl([3.0]), allowed=lambda field, times: times <= 1)
    assert progress.best == (Fraction(1),) and max(order) == (Fraction(1),) and progress.converged


@pytest.fixture
def undrawn(monkeypatch):
    """Without pictures, which take longer than everything else."""
    monkeypatch.setattr("framework.trials.rate_figure.draw_search", lambda tuning, path: None)


@pytest.fixture
def small(tmp_path):
    path = tmp_path / "small.yaml"
    path.write_text(yaml.safe_dump({"model": MODEL, "data": {"corpus": "none", "seq_len": 16, "batch_size": 2},
                                    "optim": OPTIM, "training": {"steps": 40}}))
    return str(path)


class Stub:
    """In place of training: a run whose loss follows from what it states. Dies before trial `dies_at`."""

    def __init__(self, dies_at=None, diverges=lambda stated: False):
        self.ran, self.dies_at, self.diverges = [], dies_at, diverges

    def __call__(self, trials, runs_dir, at_once):
        for trial in trials:
            folder = trial.folder(runs_dir)
            if not (folder / "DONE").exists() and not (folder / DIVERGED).exists():
                if len(self.ran) == self.dies_at:
                    raise KeyboardInterrupt
                stated = dict(text.split("=") for text in trial.overrides)
                self._train({key: float(value) for key, value in stated.items()}, folder)
                self.ran.append(trial.name)
            yield trial

    def _train(self, stated, folder):
        (folder / "checkpoints" / "step_40").mkdir(parents=True)
        wanted = {"optim.lr": (0.01, 0.05), "optim.final_lr_fraction": (0.1, 0.5),
                  "optim.relative_lr.expert.start": (1.0, 0.2)}
        loss = sum(math.log(stated.get(key, start) / best) ** 2 for key, (start, best) in wanted.items())
        rows = [{"kind": "train", "step": step, "loss": loss if step > 36 else 99.0} for step in range(1, 41)]
        (folder / "metrics.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
        (folder / (DIVERGED if self.diverges(stated) else "DONE")).touch()


SEARCHED = "optim.lr,optim.final_lr_fraction,expert,parametrization.init.scale"


def found(recipe, path, run, **changes):
    searched = find_fields(recipe, changes.pop("overrides", ()), changes.pop("search", SEARCHED))
    return tune(searched, Search(len(searched.fields), changes.pop("passes", 3), changes.pop("seed", 0)), path, 2,
                run=run)


def test_an_interrupted_search_goes_on_as_the_same_search(small, undrawn, tmp_path):
    """Wherever it dies, no trial that was over runs again, and every file of it ends up alike."""
    uninterrupted = Stub()
    tuning = found(small, tmp_path / "whole", uninterrupted)
    summary = tuning.summary()
    assert summary["values"]["optim.lr"] == pytest.approx(0.05, rel=0.25)
    assert summary["values"]["optim.relative_lr.expert.start"] == pytest.approx(0.2, rel=0.25)
    assert 0.4 < summary["values"]["optim.final_lr_fraction"] < 0.63
    assert summary["loss"] < summary["baseline_loss"] and summary["trials"] == len(uninterrupted.ran)
    for dies_at in (0, 3, 17):
        path, ran = tmp_path / f"died_{dies_at}", []
        for stub in (Stub(dies_at), Stub()):
            try:
                found(small, path, stub)
            except KeyboardInterrupt:
                assert stub.dies_at is not None
            ran += stub.ran
        assert ran == uninterrupted.ran and len(set(ran)) == len(ran)
        for name in ("trials.csv", "fragment.yaml"):
            assert (path / name).read_text() == (tmp_path / "whole" / name).read_text()
    assert not list((tmp_path / "whole").glob("trials/*/checkpoints"))
    table = list(csv.DictReader((tmp_path / "whole" / "trials.csv").open()))
    assert min(float(row["loss"]) for row in table) == summary["loss"]
    assert table[0]["trial"] == "0000" and table[0]["accepted"] == "True"


def test_diverged_trials_lose_and_are_drawn(small, tmp_path):
    stub = Stub(diverges=lambda stated: stated.get("optim.lr", 0) > 0.01)
    tuning = found(small, tmp_path / "search", stub, search="optim.lr")
    assert tuning.summary()["values"] == {"optim.lr": 0.01} and math.inf in tuning.losses.values()
    assert (tmp_path / "search" / "search.png").stat().st_size > 10_000


def test_another_search_in_the_folder_is_refused(small, undrawn, tmp_path):
    path = tmp_path / "search"
    found(small, path, Stub(), passes=1)
    assert found(small, path, Stub(), passes=2).summary()["passes"] == 2
    for changes, named in (({"seed": 1}, "seed"), ({"search": "optim.lr"}, "fields"),
                           ({"overrides": ["training.steps=50"]}, "recipe.training.steps: 40, given 50")):
        with pytest.raises(UserError, match=named):
            found(small, path, Stub(), **changes)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "mine.txt").touch()
    with pytest.raises(UserError, match="no search"):
        found(small, tmp_path / "other", Stub())


def test_fields(small):
    """By default the parts that the model has; a baseline's fields, families and ratios given by the recipe too."""
    names = [field.name for field in find_fields(small, (), None).fields]
    assert names == ["lr", "final_lr_fraction", "embedding.start", "embedding.end", "unembedding.start",
                     "unembedding.end", "router.start", "router.end", "expert.start", "expert.end", "attention.start",
                     "attention.end"]
    mamba = find_fields("moe_mamba/laptop", (), None).fields
    assert {"ssm.start", "ssm.end"} < {field.name for field in mamba}
    assert not {"attention.start", "ffn.start"} & {field.name for field in mamba}
    baseline = find_fields(small, ("optim.lr=0.02",), "optim.lr,optim.final_lr_fraction,optim.weight_decay,"
                           "parametrization.init.scale,norm")
    assert [field.start for field in baseline.fields] == [0.02, 0.1, 0.1, 1.0, 3.0, 1.0]
    point = (Fraction(3, 2), *[Fraction(1)] * 4, Fraction(1, 5))
    assert baseline.trial_overrides(point) == ("optim.lr=0.03", "optim.relative_lr.norm.end=0.2")


@pytest.mark.parametrize(("search", "overrides", "said"), [
    ("optim.lrr", (), "optim.lrr: unknown key"),
    ("optim.relative_lr.expertz.start", (), "matches no parameter"),
    ("model.d_model", (), "has 16 there; allowed: fields that hold a number above 0"),
    ("model.multipliers.attention", (), "has null there"),
    ("optim.schedule", (), "has cosine there"),
    ("expert", ("optim.schedule=constant",), "cannot matter with optim.schedule constant"),
    (None, ("optim.final_lr_fraction=0",), "final_lr_fraction"),
])
def test_fields_that_cannot_be_searched(small, search, overrides, said):
    with pytest.raises(UserError, match=said):
        find_fields(small, overrides, search)


def test_a_larger_recipe_extends_the_fragment(small, undrawn, tmp_path, upmix):
    """Its rates come from the fragment, another recipe's own statements beat it, and mup multiplies it."""
    tuning = found(small, tmp_path / "search", Stub())
    values = tuning.summary()["values"]
    (tmp_path / "big.yaml").write_text(yaml.safe_dump(
        {"extends": ["small.yaml", "search/fragment.yaml"], "model": {"d_model": 64, "moe": {"d_expert": 64}}}))
    big = load_recipe(str(tmp_path / "big.yaml")).recipe
    assert big.model.d_model == 64 and big.optim.lr == values["optim.lr"]
    assert big.optim.final_lr_fraction == values["optim.final_lr_fraction"]
    assert big.optim.relative_lr["expert"].start == values["optim.relative_lr.expert.start"] != 1.0
    carried = yaml.safe_load((tmp_path / "search" / "fragment.yaml").read_text())
    assert carried["optim"]["relative_lr"]["norm"] == {"start": 3.0, "end": 1.0}
    assert big.parametrization.init.scale == values["parametrization.init.scale"]
    (tmp_path / "mup.yaml").write_text(yaml.safe_dump(
        {"extends": "big.yaml", "parametrization": {"kind": "mup", "base_d_model": 16}, "optim": {"lr": 0.5},
         "model": {"ffn": {"multiplier": 1}, "moe": {"num_experts": 4, "granularity": 1}}}))
    code, out, _ = upmix("show", tmp_path / "mup.yaml", "--roles", "--json")
    assert code == 0
    rows = {row["role"]: row for row in json.loads(out)["roles"]}
    expert = big.optim.relative_lr["expert"]
    assert rows["expert_up"]["lr_start"] == pytest.approx(0.5 * expert.start * 16 / 64)
    assert rows["expert_up"]["lr_end"] == pytest.approx(0.5 * big.optim.final_lr_fraction * expert.end * 16 / 64)
    assert rows["norm"]["lr_start"] == pytest.approx(0.5 * 3.0)


def test_the_window_of_the_final_loss(tmp_path):
    """A tenth of a short run, 100 steps of a long one, infinity for what is not finite."""
    trial = Trial("run", "recipe", ())
    (tmp_path / "run").mkdir()
    for steps, window in ((40, 4), (7, 1), (3000, 100)):
        rows = [{"kind": "train", "step": step, "loss": 2.0 if step > steps - window else 50.0}
                for step in range(1, steps + 1)]
        (tmp_path / "run" / "metrics.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
        assert loss_of(trial, tmp_path) == 2.0
    (tmp_path / "run" / "metrics.jsonl").write_text('{"kind": "train", "step": 1, "loss": NaN}\n')
    assert loss_of(trial, tmp_path) == math.inf


@pytest.mark.parametrize(("model", "first", "second"), [
    ("rlrs/paper_34m", {"embedding": (1.5e-2, 8.87e-5), "unembedding": (1.998e-3, 5.914e-5),
                        "router": (1.998e-3, 1.332e-4), "expert": (9.0e-4, 1.4985e-4),
                        "attention": (3.0e-3, 1.332e-4)}, (33_554_432, 209_715_200)),
    ("rlrs/paper_dense_906m", {"embedding": (2.5e-3, 2.2235e-5), "unembedding": (5e-4, 1.4821e-5),
                               "ffn": (5e-4, 2.2235e-5), "attention": (5e-4, 6.67e-6)}, (905_969_664, 905_969_664)),
    ("rlrs/paper_906m", {}, (905_969_664, 5_662_310_400)),
    ("rlrs/paper_113m", {}, (113_246_208, 707_788_800)),
])
def test_published_sets(model, first, second):
    """Peak and end of every part (the end relative to the base's end), active and total non-embedding parameters."""
    from framework.optim import endpoints
    from framework.recipe import sizes

    loaded = load_recipe(model)
    optim, counted = loaded.recipe.optim, sizes(loaded.architecture, 512)
    assert (counted["params_active_non_embedding"], counted["params_total_non_embedding"]) == second
    for part, ends in first.items():
        rule = optim.relative_lr[part]
        assert endpoints(optim, rule.start, rule.end) == pytest.approx(ends, rel=1e-3)
    alike = load_recipe(f"{model}_baseline").recipe
    assert alike.optim.relative_lr == {}
    assert optim.model_copy(update={"relative_lr": {}}) == alike.optim
    assert (loaded.recipe.model, loaded.recipe.training) == (alike.model, alike.training)


def test_rates_put_before_a_recipe_leave_its_model_alone(tmp_path):
    (tmp_path / "mine.yaml").write_text("extends: [rlrs/moe_rates, quickstart]\n")
    mine, alone = load_recipe(str(tmp_path / "mine.yaml")), load_recipe("quickstart")
    assert mine.architecture == alone.architecture and mine.recipe.optim.relative_lr["expert"].end == 1.125
    assert mine.recipe.optim.lr == alone.recipe.optim.lr


@pytest.mark.full
def test_real_trials_after_a_kill(tmp_path, monkeypatch, upmix):
    """Three real runs (a fraction of 0.9 can only fall) in two processes: killed, its ranks gone, given again, ended;
    given a third time nothing runs."""
    monkeypatch.setenv("UPMIX_DATA", str(tmp_path / "data"))
    (tmp_path / "words.txt").write_text("\n\n".join("to be or not to be " * count for count in range(1, 60)))
    recipe = {"model": MODEL, "data": {"corpus": str(tmp_path / "words.txt"), "seq_len": 16, "batch_size": 2},
              "optim": OPTIM | {"final_lr_fraction": 0.9}, "training": {"steps": 20}, "checkpoint": {"every": 5}}
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(recipe))
    arguments = ["tune", "rlrs", str(tmp_path / "tiny.yaml"), "--runs-dir", str(tmp_path / "runs"), "--passes", "1",
                 "--at-once", "3", "--search", "optim.final_lr_fraction", "--json"]
    killed = psutil.Popen([*UPMIX, *arguments], stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    folder = tmp_path / "runs" / "tiny"
    _wait_for(lambda: list(folder.glob("trials/*.out")) and killed.children())
    below = killed.children(recursive=True)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert below
    _wait_for(lambda: all(not each.is_running() or each.status() == psutil.STATUS_ZOMBIE for each in below), 1)

    code, out, _ = upmix(*arguments)
    assert code == 0
    result = json.loads(out)
    assert result["trials"] == 3 and 0 < result["loss"] <= result["baseline_loss"] < 7
    assert sorted(done.parent.name for done in folder.glob("trials/*/DONE")) == ["0000", "0001", "0002"]
    fractions = [load_recipe(str(folder / f"trials/000{number}/recipe.yaml")).recipe.optim.final_lr_fraction
                 for number in range(3)]
    assert fractions == [0.9, 0.18, 0.6]
    assert load_recipe(str(tmp_path / "tiny.yaml"), [f"optim.final_lr_fraction={result['values'].popitem()[1]}"])

    shutil.rmtree(folder / "trials" / "0001" / "tensorboard")  # would be made again if it ran again
    assert json.loads(upmix(*arguments)[1])["loss"] == result["loss"]
    assert not (folder / "trials" / "0001" / "tensorboard").exists()


def _wait_for(condition, seconds=60.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)
