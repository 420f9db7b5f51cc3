"""The coordinate check: what it observes, what it fits, what it says."""

import json
import math

import pytest
import torch

from framework.model import build_language_model
from framework.parametrization import initialize, widths
from framework.recipe import load_recipe
from framework.trials.coordinates import measure, slopes
from framework.trials.observe import RESIDUAL, outputs, parameters
from framework.trials.over_widths import STARTS, for_check

RECIPE = """
model:
  pattern: "*EmM"
  d_model: 16
  vocab_size: 300
  attention: {num_heads: 2, qkv_bias: true}
  ffn: {multiplier: 2}
  moe: {expansion_rate: 4, load_balance_weight: 0.01}
  mamba: {head_dim: 8, d_state: 4}
data: {corpus: CORPUS, seq_len: 16, batch_size: 4}
optim: {lr: 3.0e-3}
training: {steps: 10}
parametrization: {kind: mup, base_d_model: 16}
"""


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    """A recipe file on a corpus of its own, small enough to be prepared in a moment."""
    folder = tmp_path_factory.mktemp("coordinates")
    corpus = folder / "words.txt"
    words = ("to", "be", "or", "not", "that", "is", "the", "question", "whether", "nobler")
    corpus.write_text("\n\n".join(" ".join(words[(i * j) % 10] for j in range(1, 60)) for i in range(1, 80)))
    path = folder / "recipe.yaml"
    path.write_text(RECIPE.replace("CORPUS", str(corpus)))
    return str(path)


@pytest.fixture(autouse=True)
def data_here(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("UPMIX_DATA", str(tmp_path_factory.getbasetemp() / "coordinates_data"))


def test_every_role_is_observed_once_for_each_module(recipe):
    loaded = load_recipe(recipe)
    model = build_language_model(loaded.architecture, widths(loaded.recipe, loaded.architecture))
    initialize(model, loaded.recipe.parametrization.init, 0)
    tokens_BS = torch.randint(0, 300, (2, 16))
    found = outputs(model, tokens_BS)
    assert set(found) == set(parameters(model)) | {RESIDUAL}
    assert [tuple(x.shape) for x in found["expert_up"]] == [(4, 32, 32)]  # experts, tokens, d_expert
    assert [tuple(x.shape) for x in found["expert_down"]] == [(4, 32, 16)]
    assert len(found[RESIDUAL]) == 4 and found["unembedding"][0].shape == (2, 16, 300)
    with torch.no_grad():
        up, gate, down = (getattr(model.layers["1"].block.experts, name)[1] for name in ("up", "gate", "down"))
        seen = model.layers["1"].norm(found[RESIDUAL][0]).flatten(0, 1)
        torch.testing.assert_close(found["expert_up"][0][1], seen @ up.T)
        hidden = torch.nn.functional.silu(seen @ gate.T) * (seen @ up.T)
        torch.testing.assert_close(found["expert_down"][0][1], hidden @ down.T)


def test_sizes_of_a_role_are_means_of_what_moved(recipe):
    """A bias moves by the learning rate in Adam's first step, times what little decay there is: none for vectors."""
    sizes = measure(load_recipe(recipe, ["optim.eps=1e-20"]), num_steps=2, num_sequences=2, seed=0)
    first, second = sizes["update", "norm"]
    assert first == pytest.approx(3e-3, rel=0.02) and first < second < 2.01 * first
    assert len(sizes["initial", "router"]) == 1 and sizes["initial", "router"][0] > 0
    assert sizes["change", "bias"] == sizes["update", "bias"]


def test_slopes_of_powers_of_the_width():
    """Sizes made as width ** exponent give the exponents back; seeds are averaged geometrically."""
    exponents = {("change", "router"): -0.5, ("change", "norm"): 0.05, ("initial", "norm"): 1.0}
    measured = {width: [{key: [9.0, factor * width**exponent] for key, exponent in exponents.items()}
                        for factor in (0.5, 2.0)] for width in (256, 64, 128)}
    rows = {(row.quantity, row.role): row for row in slopes(measured)}
    for key, exponent in exponents.items():
        assert rows[key].slope == pytest.approx(exponent)
        assert rows[key].sizes == pytest.approx([width**exponent for width in (64, 128, 256)])
    assert [rows[key].passes for key in exponents] == [False, True, True]


def test_what_is_always_zero_has_no_slope_and_fails_where_it_is_judged():
    measured = {width: [{("change", "router"): [0.0], ("initial", "router"): [0.0]}] for width in (64, 128)}
    change, initial = slopes(measured)
    assert math.isnan(change.slope) and not change.passes and initial.passes


def test_what_the_check_adds_gives_way_to_what_is_stated(recipe):
    added = for_check(recipe, ["model.moe.z_loss_weight=0.5", "parametrization.init.relative_std.router=0.2"])
    assert [text for text in added if "z_loss" in text] == ["model.moe.z_loss_weight=0.5"]
    assert [text for text in added if "router" in text] == ["parametrization.init.relative_std.router=0.2"]
    assert set(STARTS) == {"attention_q", "unembedding", "router"}
    assert "parametrization.init.relative_std.attention_q=0.0" in added


def test_the_command(recipe, tmp_path, upmix):
    options = ["--widths", "16,32", "--seeds", 1, "--steps", 2, "--sequences", 1, "--plot", tmp_path / "c.png"]
    code, out, _ = upmix("coordcheck", recipe, *options, "--json")
    found = json.loads(out)
    assert set(found) == {"passed", "rows"} and found["passed"] is (code == 0)
    assert {"role", "quantity", "slope"} <= set(found["rows"][0])
    assert {row["quantity"] for row in found["rows"]} == {"initial", "change", "update"}
    assert (tmp_path / "c.png").stat().st_size > 10_000
    code, out, _ = upmix("coordcheck", recipe, "optim.lr=0.05", "parametrization.kind=standard", *options)
    assert code == 1 and "FAILS" in out and str(tmp_path / "c.png") in out


@pytest.mark.parametrize(("arguments", "said"), [
    (["--widths", "64"], "two or more"), (["--widths", "64,x"], "--widths '64,x'"), (["--widths", "0,64"], "positive"),
    (["--widths", "16,33"], "do not divide d_model 33"),
])
def test_refusals(recipe, upmix, arguments, said):
    code, out, err = upmix("coordcheck", recipe, *arguments)
    assert (code, out) == (2, "") and said in err and err.count("\n") == 1
