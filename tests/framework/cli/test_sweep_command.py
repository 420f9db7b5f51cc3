"""`upmix sweep show` and `run` as a person uses them."""

import itertools
import json
import shlex
import sys
import time
from pathlib import Path

import pytest

import framework
from framework.trials import runs

SMALL = ["fine_grained_moe/laptop", "--over", "model.moe.granularity=2,4", "--seeds", "2", "training.steps=5"]


def test_json_has_the_fixed_names(upmix, tmp_path):
    code, out, err = upmix("sweep", "show", *SMALL, "--json", "--tflops", 100, "--runs-dir", tmp_path, "--name", "g")
    found = json.loads(out)
    assert (code, err) == (0, "") and list(found) == ["name", "recipe", "cells"] and len(found["cells"]) == 4
    first = found["cells"][0]
    assert list(first) == ["name", "changes", "params_total", "params_active", "tokens", "flops", "gpus", "hours",
                           "finished"]
    assert (found["name"], first["name"]) == ("g", "granularity_2-seed_0") and first["gpus"] == 2
    assert first["changes"] == {"model.moe.granularity": 2, "training.seed": 0} and first["tokens"] == 5 * 32 * 128
    assert first["hours"] == pytest.approx(first["flops"] / 2e14 / 3600) and first["finished"] is False


def test_the_table_is_whole_where_no_terminal_cuts_it(upmix, tmp_path):
    (tmp_path / "laptop" / "granularity_4-seed_1").mkdir(parents=True)
    (tmp_path / "laptop" / "granularity_4-seed_1" / "DONE").write_text("5\n")
    code, out, _ = upmix("sweep", "show", *SMALL, "--runs-dir", tmp_path)
    lines = out.splitlines()
    assert code == 0 and lines[0].split() == ["cell", "granularity", "seed", "params", "active", "tokens", "FLOPs",
                                              "GPUs", "hours", "done"]
    assert lines[4].split()[:6] == ["granularity_4-seed_1", "4", "1", "2,641,152", "806,144", "20,480"]
    assert lines[4].endswith("yes") and not lines[3].endswith("yes")
    assert lines[5] == f"4 cells, 1 of them finished in {tmp_path / 'laptop'}" and "to train: 3 cells" in lines[6]
    assert "30% of an H100's 989 (an assumption" in lines[7]
    assert "at 7 teraFLOP/s a GPU (--tflops)" in upmix("sweep", "show", *SMALL, "--tflops", 7)[1]


def test_a_narrow_terminal_gets_the_numbers(upmix, monkeypatch):
    for name, value in (("FORCE_COLOR", "1"), ("COLUMNS", "80"), ("TERM", "dumb")):
        monkeypatch.setenv(name, value)
    out = upmix("sweep", "show", *SMALL[:3], "training.steps=5")[1]
    table = out[: out.index("2 cells")].splitlines()
    assert "2.64M" in out and "20.5k" in out and "granularity_4 " in out and "…" not in out
    assert len(table[1].split()) == 8 and max(map(len, table)) <= 80


def test_hundreds_of_cells_are_checked_and_shown_in_seconds(upmix):
    arguments = ["joint_moe/laptop", "training.slides=[]", "--over", "model.moe.expansion_rate=2,4,8,16,32",
                 "--over", "optim.lr=log2(-14..-5 step 0.5)", "--seeds", "5", "--where", "params_active < 1e9"]
    begin = time.process_time()
    code, out, err = upmix("sweep", "show", *arguments)
    assert code == 0, err
    assert out.splitlines()[-3].startswith("475 cells") and time.process_time() - begin < 3  # quiet: 0.8 s


def test_what_the_page_quotes(upmix, tmp_path):
    """Its file, and every `sweep show` of docs/sweeps.md."""
    lines = Path(framework.__file__).parents[1].joinpath("docs", "sweeps.md").read_text().splitlines()
    begin = next(index for index, line in enumerate(lines) if line.startswith("    recipe: "))
    quoted = itertools.takewhile(lambda line: line.startswith("    "), lines[begin:])
    (tmp_path / "grid.yaml").write_text("\n".join(line[4:] for line in quoted))
    found = json.loads(upmix("sweep", "show", tmp_path / "grid.yaml", "--json")[1])
    # At width 64 rates below 4e-3 remain: 5 of 7.
    assert found["name"] == "lr_grid" and len(found["cells"]) == 3 * (7 + 5) * (1 + 2 * 2) * 3
    assert {cell["changes"]["data.batch_size"] for cell in found["cells"]} == {32}
    commands = [shlex.split(line, comments=True)[1:] for line in lines if line.startswith("    upmix sweep show")]
    assert len(commands) == 3
    for command in commands:
        assert upmix(*command)[0] == 0


@pytest.mark.parametrize(("arguments", "said"), [
    (["quickstart", "--over", "optim.lr=1..2.5"], "an end at 2 or 3"), (["quickstart", "--tflops", "0"], "--tflops 0"),
    (["quickstart", "--seeds", "2", "--where", "9**9**9 > 1"], "too large"), (["nothing"], "no recipe 'nothing'"),
    (["quickstart", "--name", "a/b"], "sweep's name 'a/b'"), (["quickstart", "--over", "model.d_model=128,129"], "129"),
])
def test_refusals_are_one_line(upmix, arguments, said):
    code, out, err = upmix("sweep", "show", *arguments)
    assert (code, out) == (2, "") and said in err and err.count("\n") == 1 and err.startswith("upmix: ")


def test_run_tells_each_event_and_fails_with_the_cells_that_do(upmix, tmp_path, monkeypatch):
    """The trainer is a script that fails for one cell."""
    monkeypatch.chdir(tmp_path)
    Path("trainer.py").write_text(
        "import sys\nfrom pathlib import Path\nname = sys.argv[sys.argv.index('--name') + 1]\n"
        "sys.exit('upmix: no luck') if 'seed_1' in name else None\nfolder = Path('out/laptop') / name\n"
        "folder.mkdir()\n(folder / 'DONE').write_text('5')\n"
        "(folder / 'metrics.jsonl').write_text('{\"kind\": \"train\", \"step\": 5, \"loss\": 2.5}\\n')\n")
    monkeypatch.setattr(runs, "UPMIX", (sys.executable, "-S", "trainer.py"))
    code, out, err = upmix("sweep", "run", "fine_grained_moe/laptop", "training.steps=5", "--seeds", 2,
                           "--runs-dir", "out")
    assert code == 1 and out.splitlines()[0] == "0 of 2 cells were finished before"
    assert "seed_0: started" in out and "seed_0: finished, loss 2.5000" in out and "seed_1: failed: " in out
    assert out.splitlines()[-1] == "2 cells: 1 finished, 1 failed"
    assert err == ("upmix: seed_1: training ended with 1: upmix: no luck; all that it said: out/laptop/seed_1.out\n")
