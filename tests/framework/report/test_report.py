"""Reports are read back from synthetic run folders."""

import csv
import json

import numpy as np
import pytest
import yaml

from framework.cli import main
from framework.errors import UserError
from framework.report import draw_expert_load, load_runs
from framework.report.curves import groups, mean_and_spread, positions

MODEL = {
    "pattern": "(*E)x2", "d_model": 32, "vocab_size": 64, "attention": {"num_heads": 2},
    "ffn": {"d_ff": 64}, "moe": {"expansion_rate": 4, "granularity": 2},
}


@pytest.fixture
def write_run(tmp_path):
    """Writes a run folder whose losses fall by a known amount; returns its path."""

    def write(name: str, seed: int = 0, lr: float = 1e-3, steps: int = 4, torn: bool = False):
        folder = tmp_path / name
        folder.mkdir()
        recipe = {"model": MODEL, "training": {"steps": steps, "seed": seed}, "optim": {"lr": lr}}
        (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
        rows = [{"kind": "train", "step": s, "loss": 5.0 - s + seed, "tokens": 100 * s, "expert_load_max": 2.0}
                for s in range(1, steps + 1)]
        rows += [{"kind": "eval", "step": steps, "val_loss": 2.0, "val_bits_per_byte": 1.5}]
        rows += [{"kind": "experts", "step": steps, "load": {"layers.1": [0.5, 0.3, 0.1, 0.1, 0, 0, 0, 0]}}]
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / "metrics.jsonl").write_text(text + ('{"kind": "tr' if torn else ""))
        return folder

    return write


def test_seeds_share_a_group_and_other_differences_do_not(write_run):
    runs = load_runs([write_run("a", seed=0), write_run("b", seed=2), write_run("c", lr=2e-3)])
    assert [[run.name for run in group] for group in groups(runs)] == [["a", "b"], ["c"]]


def test_mean_and_spread_over_seeds(write_run):
    runs = load_runs([write_run("a", seed=0), write_run("b", seed=2, steps=4)])
    x, mean, low, high = mean_and_spread(runs, "loss", "tokens")
    np.testing.assert_array_equal(x, [100, 200, 300, 400])
    np.testing.assert_array_equal(mean, [5, 4, 3, 2])
    np.testing.assert_array_equal(low, [4, 3, 2, 1])
    np.testing.assert_array_equal(high, [6, 5, 4, 3])


def test_axes(write_run):
    run, = load_runs([write_run("a")])
    per_param, _ = positions(run, "loss", "tokens_per_param")
    np.testing.assert_allclose(per_param, np.array([100, 200, 300, 400]) / run.sizes["params_active"])
    at, values = positions(run, "val_bits_per_byte", "tokens")
    assert at.tolist() == [400] and values.tolist() == [1.5]


def test_a_line_cut_by_a_kill_is_left_out(write_run):
    run, = load_runs([write_run("a", torn=True)])
    assert len(run.rows) == 6


def test_a_broken_line_in_the_middle_is_named(write_run):
    folder = write_run("a")
    text = (folder / "metrics.jsonl").read_text()
    (folder / "metrics.jsonl").write_text("{broken\n" + text)
    with pytest.raises(UserError, match="metrics.jsonl:1"):
        load_runs([folder])


@pytest.mark.parametrize("line", [b"\xff\n", b"3\n", b"{}\n", b'{"kind": "train", "step": "1"}\n'])
def test_a_line_that_is_no_row_is_named(write_run, line):
    folder = write_run("a")
    (folder / "metrics.jsonl").write_bytes(line + (folder / "metrics.jsonl").read_bytes())
    with pytest.raises(UserError, match="metrics.jsonl:1: damaged"):
        load_runs([folder])


def test_command_writes_pictures_and_table(write_run, tmp_path, monkeypatch, capsys):
    parent = write_run("a").parent
    write_run("b", seed=1)
    out, table = tmp_path / "out", tmp_path / "tables" / "all.csv"
    monkeypatch.setattr("sys.argv", ["upmix", "report", str(parent), "--out", str(out), "--csv", str(table),
                                     "--axis", "tokens_per_param"])
    with pytest.raises(SystemExit) as end:
        main()
    assert not end.value.code
    for name in ("loss.png", "expert_load.png", "experts_a.png", "experts_b.png"):
        assert (out / name).read_bytes().startswith(b"\x89PNG")
    rows = list(csv.DictReader(table.open()))
    assert len(rows) == 12 and {row["run"] for row in rows} == {"a", "b"} and rows[0]["loss"] == "4.0"


def test_a_dense_run_has_no_picture_of_experts(write_run, tmp_path):
    folder = write_run("a")
    kept = [line for line in (folder / "metrics.jsonl").read_text().splitlines() if "experts" not in line]
    (folder / "metrics.jsonl").write_text("\n".join(kept) + "\n")
    run, = load_runs([folder])
    assert draw_expert_load(run, tmp_path / "x.png") is None and not (tmp_path / "x.png").exists()


@pytest.mark.parametrize("arguments", [
    ["nowhere"], ["RUN", "--axis", "weeks"], ["RUN", "--metric", "accuracy"], ["RUN", "--csv", "/proc/none/a.csv"],
    ["RUN", "--csv", "RUN/metrics.jsonl/a.csv"], ["RUN", "--out", "RUN/metrics.jsonl"], ["RUN", "--out", "/proc/none"],
])
def test_mistakes_are_one_line(arguments, write_run, tmp_path, monkeypatch, capsys):
    folder = str(write_run("a"))
    arguments = ["--out", str(tmp_path / "out"), *(argument.replace("RUN", folder) for argument in arguments)]
    monkeypatch.setattr("sys.argv", ["upmix", "report", *arguments])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 2 and capsys.readouterr().err.count("\n") == 1 and not (tmp_path / "out").exists()
