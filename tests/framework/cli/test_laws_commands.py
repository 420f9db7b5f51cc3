"""`upmix laws` from the command line: JSON names, warnings, recipes that load, fits of tables and of run folders."""

import csv
import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import yaml

from framework.laws import predict
from framework.laws.coefficients import read_coefficients
from framework.recipe import load_recipe, sizes

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def upmix(upmix, monkeypatch, tmp_path):
    """The command line in an empty folder."""
    monkeypatch.chdir(tmp_path)
    return upmix


def table(path, law, num=40, noise=0.003, **fixed):
    """A CSV file of runs of the published joint or Chinchilla law."""
    generator = np.random.default_rng(0)
    rows = []
    for _ in range(num):
        row = {"tokens": np.exp(generator.uniform(*np.log([1e9, 5e10])))}
        size = np.exp(generator.uniform(*np.log([8e7, 1.3e9])))
        row |= {"joint": {"num_params_active": size, "num_experts": int(generator.choice([1, 2, 8, 32]))},
                "chinchilla": {"num_params": size},
                "fine_grained": {"num_params_active": size / 10, "granularity": int(generator.choice([1, 4, 16])),
                                 "expansion_rate": 64}}[law]
        row["loss"] = predict(law, row).values["loss"] + noise * generator.standard_normal()
        rows.append(row | fixed)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return path


def test_json_is_one_object_with_the_fixed_names(upmix):
    code, out, err = upmix("laws", "predict", "fine_grained", "num_params_total=4.3e9", "tokens=4.37e9",
                           "granularity=8", "--json")
    found = json.loads(out)
    assert (code, err) == (0, "") and found["loss"] == pytest.approx(3.112, abs=0.001)
    assert all("extrapolated" in line for line in found["warnings"]) and found["warnings"]
    found = json.loads(upmix("laws", "optimum", "joint", "flops=1e22", "num_experts=4", "--json")[1])
    assert found["loss"] == pytest.approx(2.1265, rel=0.002) and found["num_experts"] == 4
    assert {"num_params_active", "num_params_total", "tokens"} <= set(found)
    rate = json.loads(upmix("laws", "predict", "learning_rate", "num_params_active=321e6", "num_experts=8",
                            "--json")[1])
    assert rate["learning_rate"] == pytest.approx(3.23e-4, rel=0.002)
    assert json.loads(upmix("laws", "optimum", "fine_grained", "flops=1e20", "--json")[1])["granularity"] == 16


def test_warnings_go_to_standard_error(upmix):
    code, out, err = upmix("laws", "predict", "joint", "num_params_active=2e10", "tokens=1e10", "num_experts=2")
    assert code == 0 and "warning: joint: num_params_active" in err and "warning" not in out
    assert upmix("laws", "predict", "joint", "num_params_active=2e9", "tokens=1e10", "num_experts=2")[2] == ""
    assert "unverified" in upmix("laws", "predict", "upcycling", "num_params=1e9", "tokens=1e9", "dense_tokens=1e9")[2]


def test_list_and_show_name_every_law(upmix):
    rows = json.loads(upmix("laws", "list", "--json")[1])["laws"]
    for row in rows:
        assert row["name"] in upmix("laws", "list")[1]
        shown = upmix("laws", "show", row["name"])[1]
        assert row["source"] in shown and "predict" in shown and "set " in shown


@pytest.mark.parametrize(("law", "numbers", "width", "active"), [
    ("fine_grained", ["flops=2e17"], None, "params_active_non_embedding"),
    ("fine_grained", ["flops=1e19", "expansion_rate=16"], None, "params_active_non_embedding"),
    ("fine_grained_dense", ["flops=1e19"], None, "params_active_non_embedding"),
    ("joint", ["flops=1e20", "num_experts=8"], 1600, None), ("joint", ["flops=1e20", "num_experts=1"], 1984, None),
    ("joint", ["flops=1e22", "memory_bytes=24e9", "kv_cache_tokens=16384"], None, None),
    ("chinchilla", ["flops=1e20"], None, None),
])
def test_an_optimum_writes_a_recipe_that_loads(upmix, law, numbers, width, active):
    code, out, _ = upmix("laws", "optimum", law, *numbers, "--recipe", "best.yaml", "--json")
    assert code == 0
    best, text = json.loads(out), Path("best.yaml").read_text()
    loaded = load_recipe("best.yaml")
    found = sizes(loaded.architecture, loaded.recipe.data.seq_len)
    model = loaded.recipe.model
    assert model.d_model % 64 == 0 and model.d_model == 32 * found["num_layers"] and width in (None, model.d_model)
    size = found[active] if active else found["params_active_non_embedding"] + found["params_embedding"]
    assert size == pytest.approx(best["num_params_active"], rel=0.25)
    assert loaded.recipe.training.tokens == pytest.approx(best["tokens"], rel=0.35)
    assert f"rounded to {model.d_model}" in loaded.recipe.description
    told = float(re.search(r"predicted loss ([\d.]+)", text)[1])
    assert best["loss"] - 1e-4 <= told < best["loss"] + 0.02
    if law == "fine_grained":
        assert (found["granularity"], found["expansion_rate"]) == (best["granularity"], best["expansion_rate"])
    if law == "joint":
        assert (found["num_experts"] or 1) == best["num_experts"]
        assert loaded.recipe.optim.lr == pytest.approx(_rate(size, best["num_experts"]), rel=1e-3)
        if "memory_bytes=24e9" in numbers:
            body = found["params_total_non_embedding"] + found["params_embedding"]
            assert 2 * body + 4 * 16384 * model.d_model * found["num_layers"] / 2 <= 24e9


def _rate(size, num_experts):
    return predict("learning_rate", {"num_params_active": size, "num_experts": num_experts}).values["learning_rate"]


def test_a_recipe_on_a_base_keeps_what_the_law_does_not_say(upmix):
    assert upmix("laws", "optimum", "joint", "flops=1e15", "num_experts=8", "--recipe", "best.yaml",
                 "--base", "quickstart")[0] == 0
    recipe = load_recipe("best.yaml").recipe
    assert recipe.model.vocab_size == 4096 and recipe.data.seq_len == 256 and recipe.optim.lr == 8e-3
    assert recipe.model.moe.expansion_rate == 8 and recipe.model.moe.granularity == 1
    assert recipe.training.tokens and recipe.training.steps is None
    Path("sub").mkdir()
    assert upmix("laws", "optimum", "chinchilla", "flops=1e15", "--recipe", "sub/next.yaml", "--base",
                 "best.yaml")[0] == 0
    assert load_recipe("sub/next.yaml").recipe.model.vocab_size == 4096


def test_a_fit_of_a_table_serves_every_command(upmix):
    code, out, err = upmix("laws", "fit", "chinchilla", "--csv", table(Path("runs.csv"), "chinchilla"), "--out",
                           "found.json", "--plot", "fit.png", "--replicates", 20, "--json")
    found = json.loads(out)
    assert code == 0 and err == "" and found["fit"]["num_runs"] == 40 and found["fit"]["num_held_out"] == 8
    assert upmix("laws", "fit", "chinchilla", "--csv", "runs.csv", "--out", "found.json") == (
        2, "", "upmix: --out found.json: is there already; allowed: a new file\n")
    assert found["intervals"]["alpha"][0] < found["coefficients"]["alpha"] < found["intervals"]["alpha"][1]
    assert Path("fit.png").read_bytes().startswith(b"\x89PNG")
    assert read_coefficients(Path("found.json")).coefficients.alpha == found["coefficients"]["alpha"]
    given = ("num_params=2e9", "tokens=6e10", "--coefficients", "found.json", "--json")
    said = json.loads(upmix("laws", "predict", "chinchilla", *given)[1])
    low, high = said["loss_interval_90"]
    assert low < said["loss"] < high and said["loss"] == pytest.approx(
        predict("chinchilla", {"num_params": 2e9, "tokens": 6e10}).values["loss"], abs=0.01)
    assert "num_params 2e+09 is outside" in said["warnings"][0]
    best = json.loads(upmix("laws", "optimum", "chinchilla", "flops=1e20", "--coefficients", "found.json", "--recipe",
                            "best.yaml", "--json")[1])
    assert best["loss_interval_90"][0] < best["loss"] and load_recipe("best.yaml").recipe.training.tokens
    rows = json.loads(upmix("laws", "compare", "chinchilla", "chinchilla@found.json", "flops=1e19,1e20", "--json")[1])
    assert [len(row["curves"]) for row in rows["rows"]] == [2, 2]
    assert rows["rows"][0]["curves"][1]["loss"] != rows["rows"][0]["curves"][0]["loss"]
    same = json.loads(upmix("laws", "compare", "chinchilla", "flops=1e19,1e20", "--coefficients", "found.json",
                            "--json")[1])
    assert same["rows"][1]["curves"][0]["loss"] == best["loss"]
    code, out, _ = upmix("laws", "plot", "chinchilla@found.json", "joint,num_experts=8", "flops=1e19..1e20", "--out",
                         "a.png")
    assert (code, out) == (0, "a.png\n")
    assert Path("a.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("law", ["joint", "fine_grained"])
def test_other_laws_are_fitted_from_tables(upmix, law):
    upmix("laws", "fit", law, "--csv", table(Path("runs.csv"), law), "--out", "found.json", "--replicates", 20)
    code, out, _ = upmix("laws", "optimum", law, "flops=1e20", "--coefficients", "found.json", "--json")
    assert code == 0 and len(json.loads(out)["loss_interval_90"]) == 2


def write_run(folder, width, layers, steps, loss, experts=1, done=True):
    folder.mkdir(parents=True)
    model = {"pattern": f"(*{'E' if experts > 1 else '-'})x{layers}", "d_model": width, "vocab_size": 512,
             "attention": {"num_heads": 2}}
    if experts > 1:
        model["moe"] = {"expansion_rate": experts, "granularity": 1}
    (folder / "recipe.yaml").write_text(yaml.safe_dump({"model": model, "training": {"steps": steps}}))
    rows = [{"kind": "train", "step": step, "loss": loss + (step < 0.9 * steps), "tokens": 1e6 * step}
            for step in range(1, steps + 1)]
    rows.append({"kind": "eval", "step": steps, "val_loss": loss + 0.1})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    if done:
        (folder / "DONE").touch()


def test_a_fit_reads_finished_run_folders(upmix):
    for number in range(8):
        width, layers, steps = 32 * (1 + number % 4), 1 + number // 4, 100 + 10 * number
        size = 2 * 512 * width + 16 * layers * width**2
        write_run(Path("runs") / f"r{number}", width, layers, steps, 1 + 30 * size**-0.25 + 60 * (1e6 * steps) ** -0.25)
    write_run(Path("runs/unfinished"), 64, 2, 100, 9.0, done=False)
    code, out, err = upmix("laws", "fit", "chinchilla", "runs", "--replicates", 20, "--json")
    found = json.loads(out)
    assert code == 0 and "runs/unfinished: not finished" in err and found["runs"] == [f"r{n}" for n in range(8)]
    assert found["ranges"]["tokens"] == [100e6, 170e6]
    smallest = 2 * 512 * 32 + 4 * 32**2 + 3 * 4 * 32**2
    assert found["ranges"]["num_params"][0] == smallest
    assert found["fit"]["rmse"] < 0.01
    evaluated = json.loads(upmix("laws", "fit", "chinchilla", "runs", "--metric", "val_loss", "--out", "evaluated.json",
                                 "--replicates", 20, "--json")[1])
    by_train, by_eval = (json.loads(json.dumps(each))["coefficients"] for each in (found, evaluated))
    assert by_train != by_eval


def test_run_folders_count_as_their_law_does(upmix):
    from framework.laws.fit.forms import CHINCHILLA, FINE_GRAINED, JOINT
    from framework.laws.fit.observations import _numbers, final_loss
    from framework.report import load_runs

    write_run(Path("runs/a"), 32, 2, 100, 3.0, experts=4)
    run, = load_runs(["runs"])
    embedding, attention, ffn = 2 * 512 * 32, 2 * 4 * 32**2, 2 * 3 * 4 * 32**2
    assert _numbers(FINE_GRAINED, run) == {"num_params_total": attention + 4 * ffn, "tokens": 1e8, "granularity": 1,
                                           "expansion_rate": 4}
    assert _numbers(JOINT, run) == {"num_params_active": embedding + attention + ffn, "tokens": 1e8, "num_experts": 4}
    assert final_loss(run, "loss") == pytest.approx(3.0) and final_loss(run, "val_loss") == pytest.approx(3.1)
    with pytest.raises(ValueError, match="dense models"):
        _numbers(CHINCHILLA, run)


@pytest.mark.parametrize("arguments", [
    ("predict", "nothing"), ("predict", "joint", "tokens"), ("predict", "joint", "tokens=x"),
    ("predict", "joint", "tokens=1e9", "tokens=1e9"), ("predict", "joint", "=1"), ("optimum", "kaplan", "flops=1e20"),
    ("predict", "joint", "num_params_active=1e9", "tokens=1e9", "num_experts=2", "--coefficients", "none.json"),
    ("predict", "joint", "num_params_active=1e9", "tokens=1e9", "num_experts=2", "--coefficients", "bad.json"),
    ("predict", "joint", "num_params_active=1e9", "tokens=1e9", "num_experts=2", "--coefficients", "list.json"),
    ("predict", "joint", "num_params_active=1e9", "tokens=1e9", "num_experts=2", "--coefficients", "damaged.json"),
    ("compare", "joint"), ("plot", "joint", "flops=1e20..1e21", "--out", "/proc/none/a.png"),
    ("fit", "kaplan", "--csv", "short.csv"), ("fit", "chinchilla"), ("fit", "chinchilla", "--csv", "none.csv"),
    ("fit", "chinchilla", "--csv", "short.csv"), ("fit", "chinchilla", "--csv", "wrong.csv"),
    ("fit", "chinchilla", "--csv", "text.csv"), ("fit", "chinchilla", "nowhere"),
    ("fit", "joint", "--csv", "bytes.csv"),
    ("fit", "chinchilla", "--csv", "short.csv", "--metric", "accuracy"), ("show", "nothing"),
    ("optimum", "joint", "flops=1e20", "--recipe", "a.txt"), ("optimum", "joint", "flops=1e7", "--recipe", "a.yaml"),
    ("optimum", "joint", "flops=1e20", "--recipe", "/proc/none/a.yaml"), ("compare", "joint", "flops=1..2,tokens"),
    ("optimum", "joint", "flops=1e20", "--recipe", "a.yaml", "--base", "nothing"),
])
def test_mistakes_are_one_line(upmix, arguments):
    Path("bad.json").write_text("{")
    Path("list.json").write_text("[]")
    Path("damaged.json").write_text('{"format": 1, "law": "joint", "coefficients": {"a": 1}}')
    Path("short.csv").write_text("num_params,tokens,loss\n1e8,1e9,3\n")
    Path("wrong.csv").write_text("params,tokens,loss\n" + "1e8,1e9,3\n" * 9)
    Path("text.csv").write_text("num_params,tokens,loss\n" + "1e8,1e9,3\n" * 9 + "1e8,1e9,low\n")
    Path("bytes.csv").write_bytes(b"\xff\xfe,\n" * 20)
    code, out, err = upmix("laws", *arguments)
    assert (code, out) == (2, "") and err.count("\n") == 1 and err.startswith("upmix: ") and "allowed" in err


def test_names_that_resemble_a_wrong_one_are_told(upmix):
    assert upmix("laws", "predict", "fine_grained", "num_param_total=1e9")[2].endswith("; nearest: num_params_total\n")
    assert upmix("laws", "predict", "fine_graind", "tokens=1e9")[2].endswith("; nearest: fine_grained\n")


def test_commands_of_the_docs_run(upmix):
    """Every command of docs/laws.md, in its order; what the page shows of their output is what they print."""
    text = (ROOT / "docs" / "laws.md").read_text()
    table(Path("runs.csv"), "joint", num=60, noise=0.005)
    blocks = re.findall(r"(?m)^    \$ upmix (.+)\n((?:    (?!\$).*\n)*)", text)
    assert len(blocks) >= 6
    for command, shown in blocks:
        code, out, err = upmix(*shlex.split(command))
        assert code == 0, (command, err)
        printed = out.splitlines()
        for line in shown.splitlines():
            assert line.strip() in ("", "...") or any(_alike(line, each) for each in printed), (command, line, out)


def _alike(shown, printed):
    """Whether two lines say the same, numbers to 5 %: SciPy's versions stop their descents a little apart."""
    pairs = list(zip(shown.split(), printed.split(), strict=False))
    return len(shown.split()) == len(printed.split()) and all(
        one == other or (_number(one) is not None and _number(other) == pytest.approx(_number(one), rel=0.05))
        for one, other in pairs)


def _number(word):
    try:
        return float(word)
    except ValueError:
        return None
