"""Wrong on purpose: one reduction is changed on the ranks of a layout, and the table must tell."""

from unittest.mock import patch

import pytest
from torch.distributed.fsdp import FSDPModule

import framework.equivalence.measure as measuring
import framework.model.moe.experts as experts_module
from framework.equivalence import TOLERANCES, check_layouts, parse_layout
from framework.model.moe import MixtureOfExperts
from framework.model.moe.balance import AttachLoss
from framework.recipe import load_recipe
from framework.training import engines
from parallel import Mesh


def change_mesh(change):
    """Let every Mesh be changed once it is made."""
    original = Mesh.__init__

    def make(self, *args):
        original(self, *args)
        change(self)

    return patch.object(Mesh, "__init__", make)


def change_model(change):
    """Let the model be changed once it is parallelized; `change(model, mesh)`."""
    original = measuring.build_model

    def build(loaded, mesh, *args, **kwargs):
        model = original(loaded, mesh, *args, **kwargs)
        change(model, mesh)
        return model

    return patch.object(measuring, "build_model", build)


def moe_blocks(model) -> list[MixtureOfExperts]:
    return [module for module in model.modules() if isinstance(module, MixtureOfExperts)]


def replicas_on_their_own(mesh: Mesh) -> None:
    mesh.dense_shards, mesh.expert_shards = mesh.fsdp, mesh.expert_dp


def experts_on_their_own(mesh: Mesh) -> None:
    mesh.expert_shards = mesh.pp


def halve_expert_gradients(model, mesh: Mesh) -> None:
    for moe in moe_blocks(model):
        assert isinstance(moe.experts, FSDPModule)
        moe.experts.set_gradient_divide_factor(2.0)


def balance_over_other_sequences(model, mesh: Mesh) -> None:
    for moe in moe_blocks(model):
        parts = moe.token_parts
        moe.token_parts = type(parts)(sequence=parts.batch, batch=parts.sequence, forward=parts.forward)


def forget_parts_of_sequences(model, mesh: Mesh) -> None:
    for moe in moe_blocks(model):
        parts = moe.token_parts
        moe.token_parts = type(parts)(batch=parts.batch, forward=parts.forward)


def attach(factor: float):
    original = AttachLoss.backward

    def backward(ctx, dx):
        dx, one = original(ctx, dx)
        return dx, factor * one

    return patch.object(AttachLoss, "backward", staticmethod(backward))


def freeze_an_expert():
    """The third expert of every rank has a matrix that never learns."""
    original = experts_module.expert_ffn

    def frozen(x_TD, token_M, gate_M, counts_E, gate_EFD, up_EFD, *rest):
        kept_EFD = up_EFD.clone()
        kept_EFD[2] = up_EFD[2].detach()
        return original(x_TD, token_M, gate_M, counts_E, gate_EFD, kept_EFD, *rest)

    return patch.object(experts_module, "expert_ffn", frozen)


def count_gradients_twice():
    original = engines.gradient_norm
    return patch.object(engines, "gradient_norm", lambda *args: 2 * original(*args))


FAULTS = {
    "replicas are not summed": lambda: change_mesh(replicas_on_their_own),
    "experts are not summed over expert_dp": lambda: change_mesh(experts_on_their_own),
    "experts are averaged over expert_dp": lambda: change_model(halve_expert_gradients),
    "balance counts other sequences": lambda: change_model(balance_over_other_sequences),
    "balance counts a part of each sequence": lambda: change_model(forget_parts_of_sequences),
    "auxiliary losses are doubled": lambda: attach(2.0),
    "auxiliary losses are averaged over ranks": lambda: attach(0.5),
    "the norm counts gradients twice": count_gradients_twice,
    "an expert is frozen": freeze_an_expert,
}


def measure_with(fault: str, loaded, dtype: str):
    with FAULTS[fault]():
        return measuring.measure(loaded, dtype)


class FaultyRanks:
    """Ranks that measure with a fault where there are several."""

    def __init__(self, ranks, fault: str) -> None:
        self.ranks, self.fault = ranks, fault

    def run(self, num_ranks: int, measure, *args, timeout: float) -> list:
        faulty = (measure,) if num_ranks == 1 else (measure_with, self.fault)
        return self.ranks.run(num_ranks, *faulty, *args, timeout=timeout)


def row_of(ranks, layout: str):
    (row,) = check_layouts(load_recipe("quickstart"), [parse_layout(layout)], "float32", ranks)
    return row


@pytest.mark.parametrize(("fault", "layout", "where"), [
    ("replicas are not summed", "dp_replicate2", ""),
    ("replicas are not summed", "dp_replicate2xdp_shard2", ""),
    ("experts are not summed over expert_dp", "dp_shard4xep2", ".experts."),
    ("experts are averaged over expert_dp", "dp_shard4xep2", ".experts."),
    ("balance counts other sequences", "dp_shard2", ""),
    ("balance counts a part of each sequence", "cp2", ""),
    ("balance counts a part of each sequence", "tp2", ""),
    ("auxiliary losses are doubled", "ep2", ""),
    ("auxiliary losses are averaged over ranks", "ep2", ""),
])
def test_a_changed_reduction_is_told(ranks, fault, layout, where):
    row = row_of(FaultyRanks(ranks, fault), layout)
    assert not row.passes(TOLERANCES["float32"])
    assert row.gradient_difference > 10 * TOLERANCES["float32"].gradient
    assert where in row.gradient_parameter


def test_a_wrong_norm_shows_in_the_update_that_it_clips(ranks):
    row = row_of(FaultyRanks(ranks, "the norm counts gradients twice"), "dp_shard2")
    assert row.gradient_difference <= TOLERANCES["float32"].gradient
    assert row.update_difference > 0.1
    assert not row.passes(TOLERANCES["float32"])


def test_an_expert_that_learns_nothing_is_named(ranks):
    row = row_of(FaultyRanks(ranks, "an expert is frozen"), "ep2")
    assert row.untouched_parameters == [f"layers.1.block.experts.up[{index}]" for index in (2, 6)]
    assert not row.passes(TOLERANCES["float32"])


def test_without_a_fault_the_same_way_passes(ranks):
    assert row_of(ranks, "dp_shard4xep2").passes(TOLERANCES["float32"])
