"""Machines, timing, links, and the search."""

from math import comb

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from framework.errors import UserError
from framework.plan import MACHINES, Cluster, make_plan, read_cluster
from framework.plan.dispatch import mean_visits
from framework.plan.outline import Outline
from framework.plan.plan import plan_outline
from framework.plan.schedule import idle_share, most_in_flight
from framework.plan.search import search, write
from framework.plan.timing import EFFICIENCY
from framework.plan.traffic import sent_on, traffic_on
from framework.recipe import load_recipe, recipe_names, sizes


def plan(*overrides: str, recipe: str = "hybrid/cluster_7b", on: str = "32xh100"):
    return make_plan(load_recipe(recipe, overrides), read_cluster(on))


def test_a_cluster_is_a_number_of_a_known_machine():
    assert read_cluster("64xh100").num_gpus == 64 and read_cluster("8xb200").machine is MACHINES["b200"]
    for text in ("h100", "0xh100", "64xv100", "64 x h100", "-1xh100"):
        with pytest.raises(UserError, match="allowed: a number, x and one of a100, h100"):
            read_cluster(text)


def test_another_number_of_gpus_is_refused_with_the_arithmetic():
    with pytest.raises(UserError, match=r"= 4 \* 8 \* 1 \* 1 \* 1 = 32 ranks; allowed: 32xh100"):
        plan(on="64xh100")


def test_what_has_no_formula_is_refused():
    with pytest.raises(UserError, match="parallel.engine: deepspeed has no plan"):
        plan("parallel.ep=1", "parallel.dp_shard=2", "parallel.engine=deepspeed", recipe="quickstart", on="2xh100")
    with pytest.raises(UserError, match="symmetric_memory has no plan"):
        plan("parallel.dispatch=symmetric_memory")


def test_time_mfu_and_cost_follow_from_each_other():
    found = plan()
    timing, machine = found.timing, found.cluster.machine
    loaded = load_recipe("hybrid/cluster_7b")
    tokens = loaded.recipe.data.batch_size * loaded.recipe.data.seq_len
    assert timing.flops == sizes(loaded.architecture, 4096)["flops_per_token"] * tokens
    longest, shortest = timing.step_seconds
    assert 0 < shortest < longest
    for seconds, mfu, hours, days in zip(timing.step_seconds, timing.mfu, timing.gpu_hours, timing.days, strict=True):
        assert mfu == pytest.approx(timing.flops / (seconds * 32 * machine.flops))
        assert hours == pytest.approx(days * 24 * 32) == pytest.approx(timing.tokens / tokens * seconds / 3600 * 32)
    assert timing.mfu[0] < EFFICIENCY[0] and timing.mfu[1] <= EFFICIENCY[1]
    assert plan("training.recompute=full").timing.compute_seconds == pytest.approx(timing.compute_seconds * 4 / 3)


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_has_a_plan(name):
    outline = Outline.of(load_recipe(name))
    found = plan_outline(outline, Cluster(outline.sizes.world, MACHINES["h100"]))
    assert found.fullest.peak > found.fullest.parameters + found.fullest.optimizer > 0
    assert 0 < found.timing.mfu[0] <= found.timing.mfu[1] <= EFFICIENCY[1]
    assert (found.timing.days is None) == (outline.recipe.training.unit is None)


def test_a_smaller_gpu_does_not_fit():
    assert plan().fits and not plan("data.micro_batch_size=8", on="32xa100").fits


def test_links_carry_all_that_is_sent_and_the_network_only_what_leaves_a_node():
    outline = Outline.of(load_recipe("hybrid/cluster_7b"))
    rows = {row.axis: row for row in traffic_on(outline, 0, MACHINES["h100"])}
    for axis, size in sent_on(outline, 0).items():
        assert rows[axis].nvlink + rows[axis].network == pytest.approx(size)
    assert rows["ep"].network == 0 and rows["ep"].nvlink > 0  # ep 8 in nodes of 8
    assert rows["dp"].network > 0  # replicas on 4 nodes
    small = {row.axis: row for row in traffic_on(outline, 0, MACHINES["gh200"])}
    assert small["ep"].network / (small["ep"].nvlink + small["ep"].network) == pytest.approx(4 / 7)


@given(st.integers(2, 8), st.integers(1, 16), st.sampled_from(["1f1b", "interleaved", "zero_bubble"]))
@settings(max_examples=20, deadline=None)
def test_a_pipeline_waits_less_with_more_forwards_and_keeps_more_on_earlier_ranks(pp, rounds, schedule):
    recipe = load_recipe("quickstart").recipe
    parallel = recipe.parallel.model_copy(update={"pp": pp, "pp_schedule": schedule, "dp_shard": 1, "ep": 1})

    def with_forwards(count: int):
        data = recipe.data.model_copy(update={"batch_size": count, "micro_batch_size": 1})
        return recipe.model_copy(update={"data": data, "parallel": parallel})

    few, many = with_forwards(pp * rounds), with_forwards(2 * pp * rounds)
    assert 0 < idle_share(many) < idle_share(few) < 1
    if schedule == "1f1b":
        assert idle_share(few) == pytest.approx((pp - 1) / (pp * rounds + pp - 1))
    held = [most_in_flight(few, rank, pp * rounds) for rank in range(pp)]
    assert held == sorted(held, reverse=True) and held[-1] >= 1


@given(st.sampled_from([2, 4, 8]), st.integers(1, 8))
@settings(max_examples=20, deadline=None)
def test_mean_visits_is_the_expected_number_of_ranks(ranks, choices):
    expected = ranks * (1 - comb(16 - 16 // ranks, choices) / comb(16, choices))
    assert mean_visits(choices, 16, ranks) == pytest.approx(expected)
    assert 1 <= mean_visits(choices, 16, ranks) <= min(ranks, choices)
    halves = [mean_visits(choices + half / 2, 16, ranks) for half in range(3)]
    assert halves == sorted(halves)


def test_search_gives_layouts_that_fit_and_writes_the_best(tmp_path):
    cluster, loaded = read_cluster("8xa100"), load_recipe("hybrid/laptop", ["training.recompute=full"])
    found = search(loaded, cluster)
    assert 0 < len(found.best) <= found.num_fitting <= found.num_tried and len(found.best) <= 10
    seconds = [each.seconds for each in found.best]
    assert seconds == sorted(seconds) and all(each.plan.fits for each in found.best)
    assert len({tuple(each.plan.layout.items()) for each in found.best}) == len(found.best)

    path = tmp_path / "best.yaml"
    write(found.best[0], "hybrid/laptop", ["training.recompute=full"], path)
    again = load_recipe(str(path))
    assert again.recipe.training.recompute == "full"
    assert make_plan(again, cluster).layout == found.best[0].plan.layout


def test_search_says_what_came_nearest_where_nothing_fits():
    loaded = load_recipe("hybrid/cluster_7b", ["model.d_model=16384", "model.attention.num_heads=128"])
    with pytest.raises(UserError, match=r"none of \d+ layouts fits; the least needs [\d.]+ GB of 80"):
        search(loaded, read_cluster("4xh100"))
