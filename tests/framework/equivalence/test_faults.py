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


def measure_replicas_apart(loaded, dtype):
    return measure_with("replicas are not summed", loaded, dtype)


def measure_experts_apart(loaded, dtype):
    return measure_with("experts are not summed over expert_dp", loaded, dtype)


def measure_experts_averaged(loaded, dtype):
    return measure_with("experts are averaged over expert_dp", loaded, dtype)


def measure_balance_elsewhere(loaded, dtype):
    return measure_with("balance counts other sequences", loaded, dtype)


def measure_balance_in_part(loaded, dtype):
    return measure_with("balance counts a part of each sequence", loaded, dtype)


def measure_losses_doubled(loaded, dtype):
    return measure_with("auxiliary losses are doubled", loaded, dtype)


def measure_losses_averaged(loaded, dtype):
    return measure_with("auxiliary losses are averaged over ranks", loaded, dtype)


def measure_norm_doubled(loaded, dtype):
    return measure_with("the norm counts gradients twice", loaded, dtype)


def measure_frozen_expert(loaded, dtype):
    return measure_with("an expert is frozen", loaded, dtype)


def row_with(ranks, measure, layout: str):
    (row,) = check_layouts(load_recipe("quickstart"), [parse_layout(layout)], "float32", ranks, measure)
    return row


@pytest.mark.parametrize(("measure", "layout", "where"), [
    (measure_replicas_apart, "dp_replicate2", ""),
    (measure_replicas_apart, "dp_replicate2xdp_shard2", ""),
    (measure_experts_apart, "dp_shard4xep2", ".experts."),
    (measure_experts_averaged, "dp_shard4xep2", ".experts."),
    (measure_balance_elsewhere, "dp_shard2", ""),
    (measure_balance_in_part, "cp2", ""),
    (measure_balance_in_part, "tp2", ""),
    (measure_losses_doubled, "ep2", ""),
    (measure_losses_averaged, "ep2", ""),
])
def test_a_changed_reduction_is_told(ranks, measure, layout, where):
    row = row_with(ranks, measure, layout)
    assert not row.passes(TOLERANCES["float32"])
    assert row.gradient_difference > 10 * TOLERANCES["float32"].gradient
    assert where in row.gradient_parameter


def test_a_wrong_norm_shows_in_the_update_that_it_clips(ranks):
    row = row_with(ranks, measure_norm_doubled, "dp_shard2")
    assert row.gradient_difference <= TOLERANCES["float32"].gradient
    assert row.update_difference > 0.1
    assert not row.passes(TOLERANCES["float32"])


def test_an_expert_that_learns_nothing_is_named(ranks):
    row = row_with(ranks, measure_frozen_expert, "ep2")
    assert row.untouched_parameters == [f"layers.1.block.experts.up[{index}]" for index in (2, 6)]
    assert not row.passes(TOLERANCES["float32"])


def test_without_a_fault_the_same_way_passes(ranks):
    assert row_with(ranks, measuring.measure, "dp_shard4xep2").passes(TOLERANCES["float32"])
