"""metrics.jsonl after kills and resumes."""

import json
import math

import pytest

from framework.errors import UserError
from framework.training.metrics import MetricsFile, cut_rows_after


def write(folder, *rows):
    file = MetricsFile(folder)
    for row in rows:
        file.append(row)
    return file


def read(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_rows_are_there_at_once(tmp_path):
    write(tmp_path, {"kind": "train", "step": 1, "loss": 2.5})  # not closed
    assert read(tmp_path) == [{"kind": "train", "step": 1, "loss": 2.5}]


def test_what_json_cannot_say_is_null(tmp_path):
    write(tmp_path, {"loss": math.nan, "load": {"a": [1.0, -math.inf]}})
    assert read(tmp_path) == [{"loss": None, "load": {"a": [1.0, None]}}]


@pytest.mark.parametrize("torn", ["", '{"kind": "tr', '{"kind": "train", "step": 7'])
def test_rows_past_the_checkpoint_and_a_torn_line_go(tmp_path, torn):
    rows = [{"kind": kind, "step": step} for step in range(1, 7) for kind in ("train", "eval")]
    write(tmp_path, *rows).close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write(torn)
    cut_rows_after(tmp_path, 4)
    assert read(tmp_path) == [row for row in rows if row["step"] <= 4]
    write(tmp_path, {"kind": "train", "step": 5})
    assert [row["step"] for row in read(tmp_path)] == [1, 1, 2, 2, 3, 3, 4, 4, 5]


def test_without_a_checkpoint_nothing_stays(tmp_path):
    cut_rows_after(tmp_path, 0)
    write(tmp_path, {"kind": "train", "step": 1}).close()
    cut_rows_after(tmp_path, 0)
    assert read(tmp_path) == []


def test_a_broken_line_in_the_middle_is_named(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\nbroken\n{"step": 2}\n')
    with pytest.raises(UserError, match="metrics.jsonl:2"):
        cut_rows_after(tmp_path, 1)
