"""Distributions of initial values, and the same values on every layout."""

import math

import pytest
import torch
from scipy import stats
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Shard, distribute_tensor
from torch.distributed.tensor._redistribute import clear_redistribute_planner_cache
from torch.distributed.tensor.debug import _clear_sharding_prop_cache
from torch.testing._internal.distributed.fake_pg import FakeStore

from framework.parametrization import initialize
from framework.parametrization.init import truncated_normal_
from framework.parametrization.roles import Declaration, Role, add_parameter, constant
from framework.recipe.schema import Init

WIDTH, DEPTH = 400, 300


class Experts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        add_parameter(self, "up", (6, 10, 8), Declaration(Role.EXPERT_UP, 8, stacked=True))
        add_parameter(self, "down", (6, 8, 10), Declaration(Role.EXPERT_DOWN, 10, stacked=True, writes_residual=True))


class Toy(nn.Module):
    """One parameter of every kind that the rules tell apart."""

    num_residual_branches = 4

    def __init__(self, rows: int = 10, columns: int = 8) -> None:
        super().__init__()
        add_parameter(self, "up", (rows, columns), Declaration(Role.FFN_UP, columns))
        add_parameter(self, "down", (columns, rows), Declaration(Role.FFN_DOWN, rows, writes_residual=True))
        add_parameter(self, "lookup", (rows, columns), Declaration(Role.EMBEDDING))
        add_parameter(self, "norm", (columns,), Declaration(Role.NORM, init=constant(1.0)))
        self.experts = Experts()


def test_two_std_rule_against_scipy():
    model = Toy(WIDTH, DEPTH)
    initialize(model, Init(rule="truncated_normal_fixed", scale=0.5), seed=0)
    for matrix, fan_in in ((model.up, DEPTH), (model.down, WIDTH), (model.lookup, 1)):
        std = 0.5 / math.sqrt(fan_in)
        assert matrix.abs().max() <= 2 * std
        assert stats.kstest(matrix.detach().flatten().numpy() / std, stats.truncnorm(-2, 2).cdf).pvalue > 1e-3


def test_absolute_cut_against_scipy():
    """At scale 0.1 an embedding of nominal std 0.316 is cut at 0.2 and comes out with std 0.112."""
    model = Toy(WIDTH, DEPTH)
    initialize(model, Init(rule="truncated_normal", scale=0.1), seed=0)
    assert model.lookup.abs().max() <= 0.2
    assert model.lookup.std().item() == pytest.approx(0.112, abs=1e-3)
    nominal = math.sqrt(0.1)
    cut = stats.truncnorm(-0.2 / nominal, 0.2 / nominal, scale=nominal)
    assert stats.kstest(model.lookup.detach().flatten().numpy(), cut.cdf).pvalue > 1e-3
    uncut = stats.norm(scale=math.sqrt(0.1 / DEPTH))
    assert stats.kstest(model.up.detach().flatten().numpy(), uncut.cdf).pvalue > 1e-3


def test_normal_and_residual_outputs():
    model = Toy(WIDTH, DEPTH)
    initialize(model, Init(rule="normal", std=0.03, scale_residual_outputs=True), seed=0)
    expected = {"up": 0.03, "lookup": 0.03, "down": 0.015}
    for name, std in expected.items():
        values = model.get_parameter(name).detach().flatten().numpy()
        assert stats.kstest(values, stats.norm(scale=std).cdf).pvalue > 1e-3, name
    assert model.norm.eq(1).all()


def test_residual_outputs_are_scaled_before_the_cut():
    model = Toy(WIDTH, DEPTH)
    initialize(model, Init(rule="truncated_normal_fixed", scale_residual_outputs=True), seed=0)
    std = 1 / math.sqrt(WIDTH) / 2
    assert stats.kstest(model.down.detach().flatten().numpy() / std, stats.truncnorm(-2, 2).cdf).pvalue > 1e-3


@pytest.mark.parametrize("cut_in_std", [1e-3, 40.0, math.inf])
def test_truncation_is_finite_at_extremes(cut_in_std):
    values = torch.empty(100_000)
    truncated_normal_(values, 1e-3, cut_in_std * 1e-3, torch.Generator().manual_seed(0))
    assert values.isfinite().all()
    assert values.abs().max() < min(cut_in_std, 6) * 1e-3 * (1 + 1e-6)
    assert abs(values.mean()) < 0.02 * values.std()


def test_the_rarest_draw_is_no_outlier(monkeypatch):
    """A uniform number may be its lower end exactly, where an infinite normal belongs."""
    monkeypatch.setattr(torch.Tensor, "uniform_", lambda self, low, high, generator=None: self.fill_(low))
    values = torch.empty(3)
    truncated_normal_(values, 0.01, 0.2, torch.Generator())
    assert (values.abs() < 0.09).all()


def test_every_matrix_differs_and_follows_seed_and_name():
    first, again, other = Toy(), Toy(), Toy()
    for model, seed in ((first, 0), (again, 0), (other, 1)):
        initialize(model, Init(), seed)
    for name, parameter in first.named_parameters():
        assert torch.equal(parameter, again.get_parameter(name))
        if name != "norm":
            assert not torch.equal(parameter, other.get_parameter(name))
    assert not torch.equal(first.up, first.experts.up[0])
    experts = first.experts.up
    assert all(not torch.equal(experts[i], experts[j]) for i in range(6) for j in range(i))


@pytest.fixture
def fake_world():
    """start(rank, size): this process plays one rank of a world whose collectives do nothing."""

    def end() -> None:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
        # Cached placements carry the groups of the world that has ended.
        _clear_sharding_prop_cache()
        clear_redistribute_planner_cache()

    def start(rank: int, size: int) -> None:
        end()
        torch.distributed.init_process_group("fake", rank=rank, world_size=size, store=FakeStore())

    yield start
    end()


def shard(model: Toy, replicas: int, shards: int, ep: int) -> None:
    """Experts over ep and FSDP (or HSDP) inside, the rest over FSDP; `up` also over tensor parallelism's dim 1."""
    world = init_device_mesh("cpu", (replicas * shards * ep,), mesh_dim_names=("world",))
    mesh = world._unflatten(0, (replicas, shards, ep), ("replica", "shard", "ep"))
    split = {"up": Shard(1), "down": Shard(0)}
    for module, names in ((model.experts, {"up": Shard(0), "down": Shard(0)}), (model, split)):
        for name, placement in names.items():
            parameter = distribute_tensor(getattr(module, name).detach(), mesh["ep"], [placement], src_data_rank=None)
            setattr(module, name, nn.Parameter(parameter))
    for name in ("lookup", "norm"):
        whole = distribute_tensor(getattr(model, name).detach(), mesh["ep"], src_data_rank=None)
        setattr(model, name, nn.Parameter(whole))
    inside = mesh["replica", "shard"] if replicas > 1 else mesh["shard"]
    fully_shard(model.experts, mesh=inside)
    fully_shard(model, mesh=inside)


@pytest.mark.parametrize("layout", [(1, 1, 1), (1, 4, 1), (1, 1, 2), (1, 2, 2), (1, 4, 2), (2, 2, 2), (1, 2, 4)])
def test_every_rank_holds_its_part_of_the_same_values(layout, fake_world):
    """PyTorch shards an initialised model; initialising the sharded model must give each rank the same bits.

    (1, 2, 4) spreads 6 experts unevenly over 4 ranks, (1, 4, 2) an expert rank's 3 over 4.
    """
    for rank in range(math.prod(layout)):
        fake_world(rank, math.prod(layout))
        expected, sharded = Toy(), Toy()
        initialize(expected, Init(), seed=3)
        shard(expected, *layout)
        with torch.no_grad():
            for parameter in sharded.parameters():
                parameter.fill_(math.nan)
        shard(sharded, *layout)
        initialize(sharded, Init(), seed=3)
        for name, parameter in sharded.named_parameters():
            assert isinstance(parameter, DTensor)
            assert torch.equal(parameter.to_local(), expected.get_parameter(name).to_local()), (name, rank)
