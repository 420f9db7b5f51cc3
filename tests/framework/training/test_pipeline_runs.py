"""Whole runs in a pipeline: one rank's losses, evaluation and use of experts; checkpoints to and from one rank."""

from pathlib import Path

import pytest

from tests.helpers.runs import Whole, back_to, poison, rows, run, write_recipe

LAYOUTS = {
    "pp2": ["parallel.pp=2"],
    "pp2-interleaved": ["parallel.pp=2", "parallel.pp_schedule=interleaved"],
    "pp2-zb": ["parallel.pp=2", "parallel.pp_schedule=zero_bubble"],
    "pp2xep2": ["parallel.pp=2", "parallel.dp_shard=2", "parallel.ep=2"],
}


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    moe = {"expansion_rate": 4, "granularity": 2, "load_balance_weight": 0.01, "router": "sigmoid",
           "selection_bias_rate": 0.01}
    data = {"batch_size": 16, "micro_batch_size": 2, "batch_ramp": {256: 8}, "isolate_documents": True}
    return write_recipe(tmp_path_factory.mktemp("pipeline"), model={"tie_embeddings": True, "moe": moe}, data=data)


@pytest.fixture(scope="module")
def one(ranks, recipe):
    """A run on one rank."""
    return Whole(ranks, recipe)()


def assert_same_run(got: Path, expected: Path) -> None:
    for kind, names in (("train", ("loss", "grad_norm", "load_balance_loss", "expert_entropy", "tokens")),
                        ("eval", ("val_loss", "val_bits_per_byte"))):
        mine, theirs = rows(got, kind), rows(expected, kind)
        assert [row["step"] for row in mine] == [row["step"] for row in theirs] != []
        for row, reference in zip(mine, theirs, strict=True):
            for name in names:
                assert row[name] == pytest.approx(reference[name], rel=1e-4), (kind, row["step"], name)
    mine, theirs = rows(got, "experts"), rows(expected, "experts")
    for row, reference in zip(mine, theirs, strict=True):
        assert list(row["load"]) == list(reference["load"]) == ["layers.1", "layers.3"]
        for layer, shares in reference["load"].items():
            assert row["load"][layer] == pytest.approx(shares, abs=0.02)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_run_in_a_pipeline_is_the_run_on_one_rank(ranks, recipe, one, tmp_path, layout):
    assert run(ranks, recipe, tmp_path / "run", *LAYOUTS[layout]) == 0
    assert_same_run(tmp_path / "run", one)
    shares = [row["bubble_share"] for row in rows(tmp_path / "run")]
    if layout == "pp2":  # (p - 1) / (m + p - 1), of 4 and then 8 micro-batches
        assert shares == pytest.approx([1 / 5] * 2 + [1 / 9] * 4)
    assert all(0 < share < 0.4 for share in shares)


def test_checkpoints_go_from_a_pipeline_to_one_rank_and_back(ranks, recipe, one, tmp_path):
    path = tmp_path / "run"
    assert run(ranks, recipe, path, *LAYOUTS["pp2"]) == 0
    back_to(path, 2)
    assert run(ranks, recipe, path, resume=True) == 0
    assert_same_run(path, one)
    back_to(path, 4)
    assert run(ranks, recipe, path, *LAYOUTS["pp2-interleaved"], resume=True) == 0
    assert_same_run(path, one)


def test_a_bad_gradient_of_the_last_stage_is_named_and_skipped_on_every_rank(ranks, recipe, tmp_path):
    path, name = tmp_path / "run", "layers.3.block.experts.up"
    assert run(ranks, recipe, path, *LAYOUTS["pp2"], "training.steps=2", before=(poison, [2], name, 1)) == 0
    assert f"step 2: the gradient of {name} is not finite" in (path / "log").read_text()
    assert [row["skipped_steps"] for row in rows(path)] == [0, 1]
