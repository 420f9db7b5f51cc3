"""Each method as a function of tensors, against its paper's formula and Megatron-Core's code."""

import types

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from framework.recipe.schema import FFN, MoE
from framework.surgery.copying import take_units
from framework.surgery.drop import redraw_units
from framework.surgery.noise import add_noise
from framework.surgery.randomness import choose_units, generator, normal
from framework.surgery.routers import uniform, virtual_groups
from framework.surgery.rules import ExpertStack
from framework.surgery.scaling import factors, needed_factor
from framework.surgery.split import Split, split_block
from kernels.activations import ACTIVATIONS

UNITS, WIDTH = 24, 6


def matrices(seed: int = 0) -> dict[str, torch.Tensor]:
    """gate and up [24, 6], down [6, 24], float64."""
    numbers = torch.Generator().manual_seed(seed)
    shapes = dict(gate=(UNITS, WIDTH), up=(UNITS, WIDTH), down=(WIDTH, UNITS))
    return {name: torch.randn(shape, generator=numbers, dtype=torch.float64) for name, shape in shapes.items()}


def output(weights: dict[str, torch.Tensor], activation: str, x: torch.Tensor) -> torch.Tensor:
    act = ACTIVATIONS[activation].forward
    hidden = act(x @ weights["gate"].T) * (x @ weights["up"].T) if activation == "swiglu" else act(x @ weights["up"].T)
    return hidden @ weights["down"].T


def x(rows: int = 10) -> torch.Tensor:
    return torch.randn(rows, WIDTH, generator=torch.Generator().manual_seed(9), dtype=torch.float64)


@settings(max_examples=20, deadline=None)
@given(granularity=st.sampled_from([1, 2, 3, 4]), replicas=st.integers(1, 3), shared=st.integers(0, 2),
       activation=st.sampled_from(list(ACTIVATIONS)))
def test_shards_of_a_replica_and_the_shared_units_sum_to_the_dense_block(granularity, replicas, shared, activation):
    split = Split(shared * 4, (UNITS - shared * 4) // granularity, granularity, replicas)
    if split.d_expert * granularity != UNITS - split.num_shared_units:
        return
    dense = matrices()
    dims = {"gate": 0, "up": 0, "down": 1}
    for replica in range(replicas):
        parts = [split.units(granularity * replica + shard) for shard in range(granularity)] + [split.shared_units]
        taken = [{name: take_units(value, units, dims[name]) for name, value in dense.items()} for units in parts]
        total = sum(output(weights, activation, x()) for weights in taken)
        assert torch.allclose(total, output(dense, activation, x()))


@settings(max_examples=20, deadline=None)
@given(total=st.floats(0.1, 20), activation=st.sampled_from(list(ACTIVATIONS)))
def test_exact_factors_multiply_the_output_by_the_total(total, activation):
    scale = factors(total, activation, "exact")
    scaled = {name: value * scale[name] for name, value in matrices().items()}
    assert torch.allclose(output(scaled, activation, x()), total * output(matrices(), activation, x()))


@pytest.mark.parametrize(("experts", "shards", "choices", "weight"), [
    (64, 8, 8, 4.0), (8, 1, 1, 2.0), (8, 1, 2, 4 ** (1 / 3)), (4, 2, 2, 4 ** (1 / 3)), (64, 8, 16, 32 ** (1 / 3)),
])
def test_published_weight_scales(experts, shards, choices, weight):
    """E8G8T8 4.0, E8G1T1 2.0, E8G1T2 and E2G2T2 1.587, E8G8T16 3.175: before the softmax; G^(1/3) after it."""
    split = Split(0, 64 // shards, shards, experts // shards)
    before = MoE(num_experts=experts, top_k=choices, d_expert=64 // shards, normalize_top_k=False)
    assert factors(needed_factor(before, split), "swiglu", "paper") == pytest.approx(dict.fromkeys(
        ("gate", "up", "down"), weight))
    after = before.model_copy(update={"router": "topk_softmax"})
    assert factors(needed_factor(after, split), "relu2", "paper")["up"] == pytest.approx(shards ** (1 / 3))


@pytest.fixture(scope="module")
def megatron():
    """The state that Megatron-Core makes of a dense block's and a router's, its modules reduced to what it looks at."""
    from megatron.core.transformer.moe import upcycling_utils

    def bare(kind: type) -> nn.Module:
        module = type("Bare", (kind,), {"__init__": nn.Module.__init__, "forward": None, "__abstractmethods__": ()})
        return module()

    def convert(weights: dict, router_ED: torch.Tensor, shards: int, choices: int, activation: str, pre_softmax: bool):
        gated = activation == "swiglu"
        config = dict(gated_linear_unit=gated, ffn_hidden_size=UNITS, moe_ffn_hidden_size=UNITS // shards,
                      num_moe_experts=len(router_ED), moe_router_topk=choices, moe_router_pre_softmax=pre_softmax)
        config["activation_func"] = types.SimpleNamespace(
            __name__={"swiglu": "silu", "gelu": "gelu", "relu2": "squared_relu"}[activation])
        first = torch.cat([weights["gate"], weights["up"]]) if gated else weights["up"]
        models = []
        for kind in (upcycling_utils.BaseMoELayer, nn.Module):
            model, mlp = nn.Module(), bare(kind)
            mlp.config = types.SimpleNamespace(**config)
            model.mlp = mlp
            models.append(model)
        moe, dense = models
        moe.mlp.num_local_experts = len(router_ED)
        moe.mlp.ep_group = types.SimpleNamespace(rank=lambda: 0)
        moe.mlp.experts, moe.mlp.router = bare(upcycling_utils.SequentialMLP), nn.Module()
        moe.mlp.router.weight = nn.Parameter(router_ED)
        for name, value in (("linear_fc1", first), ("linear_fc2", weights["down"])):
            layer = nn.Module()
            layer.weight = nn.Parameter(value)
            setattr(dense.mlp, name, layer)
        return upcycling_utils.upcycle_state_dict([moe], [dense])["model"]

    return convert


@pytest.mark.parametrize(("shards", "replicas", "choices", "activation", "normalize"), [
    (4, 3, 4, "swiglu", True), (4, 3, 4, "swiglu", False), (2, 4, 4, "relu2", False), (2, 4, 2, "gelu", True),
    (1, 8, 2, "swiglu", False),
])
def test_megatron_core_makes_the_same_experts_and_router(megatron, shards, replicas, choices, activation, normalize):
    dense = matrices()
    router_ED = torch.randn(shards * replicas, WIDTH, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    theirs = megatron(dense, router_ED, shards, choices, activation, not normalize)
    moe = MoE(num_experts=shards * replicas, top_k=choices, d_expert=UNITS // shards, normalize_top_k=normalize,
              activation=activation)
    split = split_block(FFN(d_ff=UNITS, activation=activation), moe, "granular", "layer 1 (E)")
    scale = factors(needed_factor(moe, split), activation, "paper")
    assert torch.equal(virtual_groups(router_ED, shards), theirs["mlp.router.weight"])
    for expert in range(split.num_experts):
        mine = {name: take_units(value, split.units(expert), int(name == "down")) * scale[name]
                for name, value in dense.items()}
        first = torch.cat([mine["gate"], mine["up"]]) if activation == "swiglu" else mine["up"]
        prefix = f"mlp.experts.local_experts.{expert}"
        assert torch.allclose(first, theirs[f"{prefix}.linear_fc1.weight"], rtol=1e-12)
        assert torch.allclose(mine["down"], theirs[f"{prefix}.linear_fc2.weight"], rtol=1e-12)


def test_dropped_units_are_drawn_with_the_statistics_of_what_they_replace():
    matrix = normal((400, 50), 0.3, generator(0, "a")) + 0.1
    units = choose_units(400, 0.5, generator(0, "units"))
    new = redraw_units(matrix, units, 0, generator(0, "b"))
    kept = torch.ones(400, dtype=torch.bool).index_fill(0, units, False)
    assert len(units) == 200 and torch.equal(new[kept], matrix[kept]) and not (new[units] == matrix[units]).any()
    # 10 000 numbers: four standard errors.
    assert new[units].mean() == pytest.approx(matrix[units].mean().item(), abs=4 * 0.3 / 100)
    assert new[units].std() == pytest.approx(matrix[units].std().item(), abs=4 * 0.3 / 141)
    assert torch.equal(redraw_units(matrix, units[:0], 0, generator(0, "b")), matrix)


def stack(name: str, dim: int, **fields) -> ExpertStack:
    split = Split(0, UNITS, 1, 4)
    return ExpertStack("source", dim, 1.0, 0.5, split, f"block.experts.{name}", "block.experts", seed=5, **fields)


@pytest.mark.parametrize("fields", [dict(drop_ratio=0.25), dict(noise_std=0.1, noise_share=0.25)])
def test_an_expert_has_one_set_of_units_for_its_three_matrices_and_other_experts_have_others(fields):
    """Noise and redrawn values themselves differ from matrix to matrix."""
    dense, touched, values = {name: value.float() for name, value in matrices().items()}, {}, {}
    for name, dim in (("gate", 0), ("up", 0), ("down", 1)):
        for expert in range(4):
            changed = stack(name, dim, **fields).weight(dense[name], expert) - dense[name]
            touched[name, expert] = changed.abs().sum(1 - dim).nonzero()[:, 0].tolist()
            values[name, expert] = changed.abs().sum().item()
    for expert in range(4):
        assert touched["gate", expert] == touched["up", expert] == touched["down", expert]
        assert len(touched["up", expert]) == UNITS // 4
    assert len({tuple(touched["up", expert]) for expert in range(4)}) == 4 and len(set(values.values())) == 12


def test_moments_of_dropped_units_are_zero_and_the_others_scaled():
    up, rule = matrices()["up"], stack("up", 0, drop_ratio=0.5)
    changed = (rule.weight(up.float(), 2) - up.float()).abs().sum(1) > 0
    first, second = rule.moment(up, 2, 1), rule.moment(up, 2, 2)
    assert changed.sum() == UNITS // 2 and not first[changed].any() and not second[changed].any()
    assert torch.equal(first[~changed], 0.5 * up[~changed]) and torch.equal(second[~changed], 0.25 * up[~changed])


def test_noise_has_its_std_in_its_units_alone():
    matrix = torch.zeros(60, 400)
    units = choose_units(400, 0.25, generator(1, "units"))
    new = add_noise(matrix, units, 1, 0.02, generator(1, "noise"))
    assert int((new.abs().sum(0) > 0).sum()) == len(units) == 100
    assert new[:, units].std() == pytest.approx(0.02, rel=4 / 110) and new[:, units].mean().abs() < 4 * 0.02 / 77


def test_a_uniform_router_has_the_published_std():
    router_ED = uniform((64, 500), generator(0, "router"))
    assert router_ED.dtype == torch.float32 and router_ED.std() == pytest.approx(0.02, rel=0.02)
    assert router_ED.abs().max() <= 0.01 * 12**0.5 and router_ED.mean().abs() < 4 * 0.02 / 178


def test_randomness_depends_on_seed_and_purpose_alone():
    draws = [normal((5,), 1.0, generator(*place)) for place in ((0, "a", 1), (0, "a", 2), (0, "b", 1), (1, "a", 1))]
    assert torch.equal(draws[0], normal((5,), 1.0, generator(0, "a", 1)))
    assert len({tuple(draw.tolist()) for draw in draws}) == 4
