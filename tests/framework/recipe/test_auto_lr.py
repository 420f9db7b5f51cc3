"""`optim.lr: auto`: the joint law's rate from a recipe's own sizes."""

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from framework.cli import main
from framework.errors import UserError
from framework.recipe import dump, load_recipe, sizes

RECIPE = {"model": {"pattern": "(*E)x2", "d_model": 64, "vocab_size": 256, "attention": {"num_heads": 2},
                    "ffn": {"multiplier": 3}, "moe": {"expansion_rate": 8}}, "optim": {"lr": "auto"}}


@pytest.fixture
def load(tmp_path):
    """Loads the recipe with overrides."""
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(RECIPE))
    return lambda *overrides: load_recipe(str(tmp_path / "own.yaml"), overrides)


def law(num_params: float, expansion_rate: float) -> float:
    """Equation 8 of 2502.05172, with the constants of the authors' code."""
    return math.exp(8.391640956234012 - 0.8121798244457074 * math.log(num_params)
                    - 0.25000000000000533 * math.log(expansion_rate))


def paper_size(expansion_rate: int) -> tuple[str, ...]:
    """The authors' model of d_model 1024 and 16 blocks: 2 d V + 13 blocks d^2 = 321M active parameters."""
    return ("model.pattern=(*E)x16", "model.d_model=1024", "model.attention.num_heads=16", "model.vocab_size=50257",
            f"model.moe.expansion_rate={expansion_rate}")


@pytest.mark.parametrize(("expansion_rate", "rate"), [(1, 5.4e-4), (8, 3.23e-4), (32, 2.3e-4)])
def test_the_rates_of_the_authors_model_with_embeddings(load, expansion_rate, rate):
    loaded = load(*paper_size(expansion_rate))
    assert sizes(loaded.architecture, 1)["params_active"] == pytest.approx(321e6, rel=2e-3)
    assert loaded.recipe.optim.lr == pytest.approx(rate, rel=0.01)


@pytest.mark.parametrize(("change", "expansion_rate"), [
    ((), 8), (("model.moe.granularity=4",), 8), (("model.moe.num_experts=3",), 3),
    (("model.moe.num_experts=3", "model.moe.d_expert=96", "model.moe.top_k=1"), 1.5),
    (("model.pattern=(*-)x2",), 1), (("model.pattern=(mE)x2",), 8), (("model.pattern=mm",), 1),
    (("model.sublayers.S={kind: moe, granularity: 2}", "model.pattern=*E*S"), 8),
])
def test_what_the_law_is_asked_with(load, change, expansion_rate):
    loaded = load(*change)
    num_params = sizes(loaded.architecture, 1)["params_active"]
    assert loaded.recipe.optim.lr == pytest.approx(law(num_params, expansion_rate), rel=1e-12)
    assert str(loaded.origins["optim.lr"]).startswith(f"auto: joint law, N {num_params:,}, E {expansion_rate:g}, ")


@pytest.mark.parametrize(("change", "said"), [
    (("model.sublayers.S={kind: moe, expansion_rate: 4}", "model.pattern=*E*S"), "optim.lr: .*8 of 'E', 4 of 'S'"),
    (("model.pattern=*-*E",), "optim.lr: .*1 of '-', 8 of 'E'.*; allowed: a number"),
    (("parametrization.kind=mup", "parametrization.base_d_model=32"), "optim.lr.*given auto with kind mup"),
    (("optim.lr=automatic",), "optim.lr: given 'automatic'"), (("optim.lr=[auto]",), "optim.lr: given"),
    (("optim=auto",), "optim: given 'auto'"),
])
def test_what_the_law_cannot_say_is_one_line(load, change, said):
    with pytest.raises(UserError, match=said) as raised:
        load(*change)
    assert "\n" not in str(raised.value)


def test_a_later_number_replaces_it_and_it_a_number(load, tmp_path):
    assert load("optim.lr=0.5").recipe.optim.lr == 0.5
    (tmp_path / "later.yaml").write_text(yaml.safe_dump({"extends": "own.yaml", "optim": {"lr": 0.25}}))
    assert load_recipe(str(tmp_path / "later.yaml")).recipe.optim.lr == 0.25
    again = load_recipe(str(tmp_path / "later.yaml"), ["optim.lr=auto"])
    assert again.recipe == load().recipe and str(again.origins["optim.lr"]).endswith(", command line")


def test_the_resolved_recipe_holds_the_number(load, tmp_path):
    (tmp_path / "resolved.yaml").write_text(dump(load().recipe))
    assert yaml.safe_load((tmp_path / "resolved.yaml").read_text())["optim"]["lr"] == load().recipe.optim.lr
    assert load_recipe(str(tmp_path / "resolved.yaml")).recipe == load().recipe


def test_show_prints_it_without_pytorch_and_scipy(load, tmp_path):
    load()
    program = ("import json, sys; from framework.recipe import load_recipe; loaded = load_recipe(sys.argv[1]); "
               "print(json.dumps([loaded.recipe.optim.lr, 'torch' in sys.modules, 'scipy' in sys.modules]))")
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path / "own.yaml")], capture_output=True, text=True,
                          cwd=Path(__file__).parents[3])
    assert json.loads(done.stdout) == [load().recipe.optim.lr, False, False], done.stderr


def test_the_docs_show_what_is_printed(monkeypatch, capsys):
    section = (Path(__file__).parents[3] / "docs" / "recipes.md").read_text().partition("### lr: auto\n")[2]
    command, printed = [line for line in section.splitlines() if line.startswith("    ")][:2]
    monkeypatch.setattr("sys.argv", command.split())
    with pytest.raises(SystemExit):
        main()
    assert printed.removeprefix("    ") in capsys.readouterr().out.splitlines()
