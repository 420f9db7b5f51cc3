"""Upcycling on ranks: the same weights on every layout, read piece by piece."""

import gc
import json
from pathlib import Path

import pytest
import torch

from framework.errors import UserError
from tests.helpers.upcycling import SHARDS, state

ONE, LAYOUTS = "dp_shard=1", ("dp_replicate=2", "tp=2,ep=2", "pp=2", "cp=2,ep=2", "dp_shard=2,tp=2,ep=4")
COPIES = ("model.moe.granularity=1", "model.moe.top_k=null", "model.moe.num_experts=4")


@pytest.fixture(scope="module")
def one_rank(upcycle) -> dict[str, torch.Tensor]:
    return state(upcycle("one_rank", ONE, **SHARDS)[0])


@pytest.fixture(scope="module")
def dropped(upcycle):
    """Drop-upcycling with noise on a layout: every tensor of the checkpoint."""
    return lambda layout: state(upcycle(f"drop_{layout}", layout, *COPIES, method="drop", noise_std=0.01)[0])


@pytest.fixture(scope="module")
def dropped_on_one_rank(dropped) -> dict[str, torch.Tensor]:
    return dropped(ONE)


def differing(got: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> list[str]:
    assert got.keys() == expected.keys()
    return [name for name in expected if not torch.equal(got[name], expected[name])]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_the_same_bits_and_the_dense_logits(upcycle, one_rank, layout):
    path, report = upcycle(layout, layout, **SHARDS)
    assert report["exact"] and 0 < report["difference"]["max_abs"] < 1e-5 and report["difference"]["relative"] < 1e-5
    assert differing(state(path), one_rank) == []


@pytest.mark.full
@pytest.mark.parametrize(("layout", "fields"), [
    ("pp=2,tp=2,ep=2", ()), ("pp=2,cp=2,ep=2", ()), ("pp=2,tp=2", ("parallel.pp_schedule=interleaved",)),
    ("dp_shard=2", ("parallel.engine=deepspeed",)),
    ("dp_shard=2,cp=2,ep=4", ("training.dtype=bfloat16", "training.recompute=full", "training.compile=true")),
])
def test_further_layouts_and_engines_give_the_same_bits(upcycle, one_rank, layout, fields):
    path, report = upcycle(f"{layout}{len(fields)}", layout, *fields, **SHARDS)
    assert report["exact"] and 0 < report["difference"]["max_abs"] < 1e-5
    assert differing(state(path), one_rank) == []


@pytest.mark.parametrize("layout", ["tp=2,ep=2", "pp=2"])
def test_random_parts_do_not_depend_on_the_layout(dropped, dropped_on_one_rank, layout):
    assert differing(dropped(layout), dropped_on_one_rank) == []
    up_EFD = dropped_on_one_rank["model.layers.1.block.experts.up"]
    assert not torch.equal(up_EFD[0], up_EFD[1])


def test_the_optimizers_state_goes_over_or_starts_anew(one_rank, dropped_on_one_rank, dense):
    before = state(dense, 3)
    up, expert = "layers.1.block.up.weight", "layers.1.block.experts.up"
    assert one_rank[f"optim.{expert}.step"] == before[f"optim.{up}.step"] == 3
    # 4 shards in 3 replicas, up scaled by 4^(1/2): a gradient is 1 / (2 * 3) of the dense one.
    for power, moment in ((1, "exp_avg"), (2, "exp_avg_sq")):
        shard = before[f"optim.{up}.{moment}"][16:32]
        assert shard.abs().max() > 0
        for replica in range(3):
            assert torch.allclose(one_rank[f"optim.{expert}.{moment}"][4 * replica + 1], shard / 6**power)
        query = f"optim.layers.0.block.q.weight.{moment}"
        assert torch.equal(one_rank[query], before[query])
    router = [value for name, value in one_rank.items() if "optim" in name and "router" in name]
    assert router and not any(value.any() for value in router)
    assert not any(value.any() for name, value in dropped_on_one_rank.items() if name.startswith("optim."))


def note_reads(patch: pytest.MonkeyPatch, folder: Path) -> None:
    """Write down what this rank reads: name and how many numbers, a line for each call."""
    from framework.training.checkpoint.safe_reader import SafeReader

    read = SafeReader.read_data

    def noted(self, plan, planner):
        sizes: dict[str, int] = {}
        for item in plan.items:
            name = item.storage_index.fqn
            sizes[name] = sizes.get(name, 0) + item.lengths.numel()
        with (folder / f"rank_{torch.distributed.get_rank()}").open("a") as file:
            file.write(json.dumps(sizes) + "\n")
        return read(self, plan, planner)

    patch.setattr(SafeReader, "read_data", noted)


def test_a_rank_reads_its_own_layers_and_one_dense_matrix_at_a_time(upcycle, tmp_path):
    upcycle("counted", "pp=2", before=(note_reads, tmp_path), **SHARDS)
    for rank, (mine, other) in enumerate([("layers.1.", "layers.3."), ("layers.3.", "layers.1.")]):
        # The first call loads the dense model, split as the target, for the comparison; the rest make the new one.
        _, *calls = [json.loads(line) for line in (tmp_path / f"rank_{rank}").read_text().splitlines()]
        assert not any(other in name for call in calls for name in call)
        block = [call for call in calls if any(f"{mine}block." in name and not name.endswith(".step") for name in call)]
        # Three matrices, each with two moments; all 12 experts are made of one reading.
        assert len(block) == 9 and all(list(call.values()) == [64 * 32] for call in block)


def count_models(patch: pytest.MonkeyPatch, before: int) -> None:
    """Fail where a model is built while there is another; a rank may still hold some of an earlier test."""
    from framework.model import LanguageModel
    from framework.surgery import run

    def count() -> int:
        return sum(isinstance(each, LanguageModel) for each in gc.get_objects())

    gc.collect()
    build, earlier = run.build_model, count()

    def alone(*args, **kwargs):
        models = count() - earlier
        assert models <= before, f"{models} models are there already"
        return build(*args, **kwargs)

    patch.setattr(run, "build_model", alone)


def test_the_dense_model_is_gone_before_the_new_one_is_built(upcycle):
    upcycle("alone", "tp=2,ep=2", before=(count_models, 0), **SHARDS)


def cannot_split(patch: pytest.MonkeyPatch, why: str) -> None:
    """Refuse to build a model without experts."""
    from framework.surgery import run

    build = run.build_model

    def refused(loaded, *args, **kwargs):
        if "E" not in loaded.recipe.model.pattern:
            raise UserError(why)
        return build(loaded, *args, **kwargs)

    patch.setattr(run, "build_model", refused)


def test_a_dense_model_that_the_layout_cannot_split_is_upcycled_without_comparison(upcycle, one_rank):
    path, report = upcycle("not_compared", "tp=2,ep=2", before=(cannot_split, "tp=2 must divide 33"), **SHARDS)
    assert report["difference"] is None and differing(state(path), one_rank) == []


def test_a_rank_reads_only_its_part_of_what_goes_over_as_it_is(upcycle, tmp_path):
    upcycle("parts", "dp_shard=2", before=(note_reads, tmp_path), **SHARDS)
    for rank in range(2):
        _, copied, *_ = [json.loads(line) for line in (tmp_path / f"rank_{rank}").read_text().splitlines()]
        assert copied["model.layers.0.block.q.weight"] == 32 * 32 / 2
