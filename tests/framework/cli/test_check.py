"""`upmix check parallel` as a person uses it."""

import json
import os
import subprocess
import sys

import pytest

from framework.cli import main
from framework.command import UPMIX

COMMAND = [*UPMIX, "check", "parallel"]


@pytest.fixture
def give(monkeypatch, capsys, ranks):
    """Give `upmix check parallel ...` in this process, on the tests' own ranks: (exit code, output, errors)."""
    import parallel

    class Borrowed:
        run = ranks.run

        def close(self) -> None:
            """The tests' ranks live on."""

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(parallel, "RankPool", Borrowed)
        monkeypatch.setattr(sys, "argv", ["upmix", "check", "parallel", *arguments])
        with pytest.raises(SystemExit) as end:
            main()
        out, err = capsys.readouterr()
        return end.value.code or 0, out, err

    return run


def test_json_is_all_that_is_printed_and_no_rank_is_left(tmp_path):
    done = subprocess.run([*COMMAND, "quickstart", "--layouts", "dp_shard2,ep2", "--json"], cwd=tmp_path,
                          capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)["rows"]
    assert [row["layout"] for row in rows] == ["dp_shard2", "ep2"]
    for row in rows:
        assert 0 <= row["loss_difference"] < 1e-5
        assert 0 < row["gradient_difference"] < 1e-4
        assert 0 < row["update_difference"] < 1e-3
        assert row["gradient_parameter"].startswith(("layers.", "embedding", "unembedding", "final_norm"))
        assert row["untouched_parameters"] == []
        assert row["seconds"] > 0
    assert done.stderr == ""
    assert list(tmp_path.iterdir()) == []


def test_the_table_names_what_it_measured(give):
    code, out, err = give("quickstart", "model.moe.top_k=1", "--layouts", "dp_shard2", "--dtype", "float64")
    assert code == 0
    assert "loss after 1" in out and "loss after 5" in out and "dp_shard2" in out and " yes" in out
    assert "tolerances: loss 1e-10, gradient 1e-10" in out
    assert err == ""


def test_a_row_out_of_tolerance_fails_the_command(give, monkeypatch):
    import framework.equivalence.compare as compare

    monkeypatch.setitem(compare.TOLERANCES, "float32", compare.Tolerance(1e-5, 1e-12, 1e-3))
    code, out, err = give("quickstart", "--layouts", "dp_shard2")
    assert code == 1
    assert " NO" in out
    assert "--dtype float64" in err and len(err.splitlines()) == 1


@pytest.mark.parametrize(("arguments", "told"), [
    (["quickstart", "--layouts", "tq2"], "layout 'tq2': no axis 'tq'; nearest: tp"),
    (["quickstart", "--layouts", "dp_shard2,,ep2"], "--layouts 'dp_shard2,,ep2': a name is empty"),
    (["quickstart", "--layouts", ""], "--layouts '': a name is empty"),
    (["quickstart", "--layouts", "ep16"], "ep 16 does not divide the 8 experts"),
    (["quikstart", "--layouts", "ep2"], "no recipe 'quikstart'"),
    (["quickstart", "model.moe.granularity=7", "--layouts", "ep2"], "granularity 7 does not divide"),
    (["quickstart", "--dtype", "float16"], "float16"),
])
def test_a_mistake_is_told_in_one_line(give, arguments, told):
    code, out, err = give(*arguments)
    assert (code, out) == (2, "")
    assert told in err and len(err.splitlines()) == 1
