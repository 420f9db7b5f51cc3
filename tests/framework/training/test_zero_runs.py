"""Whole runs by DeepSpeed's ZeRO: one rank's losses, evaluation and use of experts; checkpoints to and from FSDP."""

import math
from contextlib import closing
from pathlib import Path

import pytest
import torch

from parallel import RankPool
from tests.helpers.runs import Whole, all_rows, cut, rows, run, write_recipe

pytest.importorskip("deepspeed", reason="ZeRO needs the extra `zero`")

ONE = ()
FSDP = ("parallel.dp_shard=2",)
ZERO1, ZERO2, ZERO3 = ((*FSDP, "parallel.engine=deepspeed", f"parallel.zero_stage={stage}") for stage in (1, 2, 3))
LAYOUTS = {
    "stage 1": ZERO1, "stage 2, whole shares": (*ZERO2, "data.micro_batch_size=null"), "stage 3": ZERO3,
    "stage 1, replicas": ("parallel.dp_replicate=2", *ZERO1[1:]),
    "stage 2 offloaded": (*ZERO2, "parallel.offload=cpu"), "stage 3 offloaded": (*ZERO3, "parallel.offload=cpu"),
    "stage 3 on one rank": ZERO3[1:], "stage 3, recomputed": (*ZERO3, "training.recompute=full"),
}


@pytest.fixture(scope="module")
def ranks():
    """Of this file alone: DeepSpeed's engines keep their groups, whose threads would slow the tests after these."""
    with closing(RankPool()) as pool:
        yield pool


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    moe = {"expansion_rate": 4, "granularity": 2, "load_balance_weight": 0.01, "z_loss_weight": 0.001,
           "router": "sigmoid", "selection_bias_rate": 0.01}
    return write_recipe(tmp_path_factory.mktemp("zero"), data={"micro_batch_size": 2, "batch_ramp": {256: 4}},
                        model={"pattern": "MEmE*E", "tie_embeddings": True, "moe": moe})


@pytest.fixture(scope="module")
def whole(ranks, recipe):
    """Undisturbed runs by layout, each made once."""
    return Whole(ranks, recipe)


def assert_near(path: Path, reference: Path, rel: float = 1e-5) -> None:
    """The losses within rel; what is the difference of such numbers, or counts near ties, within more."""
    for ours, theirs in zip(all_rows(path), all_rows(reference), strict=True):
        assert ours.keys() == theirs.keys() and ours["kind"] == theirs["kind"]
        for name, value in theirs.items():
            if name in ("loss", "val_loss"):
                assert ours[name] == pytest.approx(value, rel=rel), (ours["step"], name)
            elif isinstance(value, float):
                assert ours[name] == pytest.approx(value, rel=20 * rel), (ours["step"], name)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_mode_gives_one_ranks_run(whole, layout):
    assert_near(whole(*LAYOUTS[layout]), whole(*ONE))


def test_from_fsdp_to_zero_and_back(ranks, recipe, whole, tmp_path):
    path = cut(whole(*FSDP), tmp_path / "a", 2)
    assert run(ranks, recipe, path, *ZERO3, resume=True) == 0
    assert_near(path, whole(*ONE))
    path = cut(path, tmp_path / "b", 4)
    assert run(ranks, recipe, path, *FSDP, resume=True) == 0
    assert_near(path, whole(*ONE))


def test_from_offloaded_to_one_rank_and_to_another_stage(ranks, recipe, whole, tmp_path):
    path = cut(whole(*LAYOUTS["stage 2 offloaded"]), tmp_path / "a", 2)
    assert run(ranks, recipe, path, *ONE, resume=True) == 0
    assert_near(path, whole(*ONE))
    path = cut(path, tmp_path / "b", 4)
    assert run(ranks, recipe, path, *ZERO1, resume=True) == 0
    assert_near(path, whole(*ONE))


@pytest.mark.parametrize("layout", [ZERO2, ZERO3])
def test_on_the_same_layout_it_resumes_bit_for_bit(ranks, recipe, whole, tmp_path, layout):
    path = cut(whole(*layout), tmp_path / "a", 2)
    assert run(ranks, recipe, path, *layout, resume=True) == 0
    assert all_rows(path) == all_rows(whole(*layout))


def test_bfloat16_is_near_float32(whole):
    low = whole(*ZERO3, "training.dtype=bfloat16")
    for ours, theirs in zip(all_rows(low), all_rows(whole(*ONE)), strict=True):
        for name in {"loss", "val_loss"} & ours.keys():
            assert ours[name] != theirs[name] and ours[name] == pytest.approx(theirs[name], rel=0.03)


def spoil(patch, bad_step: int) -> None:
    """In a step the last rank's loss is NaN."""
    from framework.training.trainer import Trainer
    from parallel.zero import Zero

    if torch.distributed.get_rank() < torch.distributed.get_world_size() - 1:
        return
    now, step, backward = [], Trainer.step, Zero.backward
    patch.setattr(Trainer, "step", lambda self, number, request: (now.append(number), step(self, number, request))[1])
    patch.setattr(Zero, "backward", lambda self, share, last: backward(
        self, share * (torch.nan if now[-1] == bad_step else 1.0), last))


def test_a_loss_that_is_not_finite_skips_the_step(ranks, recipe, tmp_path):
    path = tmp_path / "a"
    assert run(ranks, recipe, path, *ZERO3, before=(spoil, 2)) == 0
    assert [row["skipped_steps"] for row in rows(path)] == [0, 1, 1, 1, 1, 1]
    assert [row["grad_norm"] is None for row in rows(path)] == [False, True, False, False, False, False]
    assert "step 2: the loss or a gradient is not finite" in (path / "log").read_text()
    assert all(math.isfinite(row["loss"]) for row in rows(path))
