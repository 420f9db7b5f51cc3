"""Every architecture both ways: bit-equal round trips, and the logits that transformers computes."""

import pytest

from framework.convert.choose import choose
from framework.errors import UserError
from framework.recipe import load_recipe
from tests.helpers.conversion import (
    OURS,
    THEIRS,
    assert_bit_equal,
    assert_same_logits,
    files_of,
    load_theirs,
    make_run,
    read,
    their_case,
    weights_of,
    write,
)


@pytest.mark.parametrize("case", OURS)
def test_ours_to_theirs_and_back(case, tmp_path):
    target, pattern, fields = OURS[case]
    run = make_run(tmp_path / "run", pattern, **fields)
    report = write(run, tmp_path / "hf")
    assert report["target"] == target
    assert_same_logits(run, load_theirs(tmp_path / "hf"))
    read(tmp_path / "hf", tmp_path / "back")
    assert_bit_equal(weights_of(tmp_path / "back", 0), weights_of(run, 3))


@pytest.mark.parametrize("case", THEIRS)
def test_theirs_to_ours_and_back(case, tmp_path):
    model_type, model = their_case(case)
    model.save_pretrained(tmp_path / "hf")
    read(tmp_path / "hf", tmp_path / "run")
    assert_same_logits(tmp_path / "run", model)
    report = write(tmp_path / "run", tmp_path / "again")
    assert report["target"] == model_type
    assert_bit_equal(files_of(tmp_path / "again"), files_of(tmp_path / "hf"))


def test_the_published_hybrid_is_the_class_that_was_published():
    assert choose(load_recipe("hybrid/paper")).model_type == "nemotron_h"


def test_the_nearest_targets_are_those_of_as_many_kinds_of_layers():
    with pytest.raises(UserError, match="nearest are nemotron_h: [^;]*$"):
        choose(load_recipe("hybrid/laptop"))
