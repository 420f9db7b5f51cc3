"""Which layers stand on which stage of a pipeline, and what a pipeline cannot take."""

from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from framework.recipe.architecture import Architecture, architecture
from framework.recipe.flops import training_flops_per_token
from framework.recipe.layout_fit import pipeline_misfits
from framework.recipe.parameters import parameters
from framework.recipe.schema import Data, Model, Parallel
from framework.recipe.stages import balanced_borders, layer_costs, num_stages, stage_layers

FIELDS = dict(d_model=16, vocab_size=40, attention=dict(num_heads=2), ffn=dict(d_ff=64),
              mamba=dict(head_dim=8, d_state=4), moe=dict(num_experts=4, top_k=2, d_expert=8))


def make(pattern: str, **fields) -> Architecture:
    return architecture(Model(**FIELDS | dict(pattern=pattern) | fields))


@given(st.lists(st.integers(0, 9), min_size=1, max_size=8), st.integers(1, 8))
def test_no_other_borders_have_a_smaller_largest_part(costs, num_parts):
    if num_parts > len(costs):
        return
    borders = balanced_borders(costs, num_parts)
    assert len(borders) == num_parts + 1 and borders == sorted(set(borders))
    assert borders[0] == 0 and borders[-1] == len(costs)

    def largest(inner: tuple[int, ...]) -> int:
        ends = [0, *inner, len(costs)]
        return max(sum(costs[a:b]) for a, b in zip(ends, ends[1:], strict=False))

    best = min(largest(inner) for inner in combinations(range(1, len(costs)), num_parts - 1))
    assert largest(tuple(borders[1:-1])) == best


def test_later_stages_are_filled_first():
    assert balanced_borders([1] * 5, 2) == [0, 2, 5]
    assert balanced_borders([10**30] * 5, 2) == [0, 2, 5]


@pytest.mark.parametrize("tied", [False, True])
def test_costs_are_the_flops_of_the_forward(tied):
    model = make("*E-mM", tie_embeddings=tied)
    costs = layer_costs(model, seq_len=32)
    assert 3 * sum(costs) == pytest.approx(training_flops_per_token(model, 32, parameters(model)), rel=1e-3)


def test_a_large_vocabulary_leaves_fewer_layers_to_the_last_stage():
    assert stage_layers(make("(-)x6"), 32, 2) == [range(0, 3), range(3, 6)]
    assert stage_layers(make("(-)x6", vocab_size=400), 32, 2) == [range(0, 4), range(4, 6)]


def test_cuts_decide_and_mean_nothing_on_one_stage():
    assert stage_layers(make("-|-(-)x4"), 32, 2) == [range(0, 1), range(1, 6)]
    assert stage_layers(make("-|-(-)x4"), 32, 1) == [range(0, 6)]


@pytest.mark.parametrize(("pattern", "stages", "message"), [
    ("(-)x3", 4, "4 pipeline stages need as many layers, but the pattern has 3"),
    ("-|-|-", 2, r"2 pipeline stages need 1 cuts, but the pattern has 2 \|"),
])
def test_impossible_cuts(pattern, stages, message):
    with pytest.raises(ValueError, match=message):
        stage_layers(make(pattern), 32, stages)


def test_number_of_stages():
    assert num_stages(Parallel(pp=2)) == 2
    assert num_stages(Parallel(pp=2, pp_schedule="interleaved")) == 4
    assert num_stages(Parallel(pp=2, pp_schedule="zero_bubble", pp_stages_per_rank=3)) == 6
    assert num_stages(Parallel(pp_schedule="interleaved")) == 1


@pytest.mark.parametrize(("layout", "data", "expected"), [
    (dict(pp=2), dict(batch_size=8, micro_batch_size=4), []),
    (dict(pp=1), dict(batch_size=8), []),
    (dict(pp=2, dp_shard=2), dict(batch_size=8),
     ["8 sequences / 2 data-parallel ranks / micro_batch_size 4 = 1 micro-batches, but pp=2 needs at least 2"]),
    (dict(pp=2), dict(batch_size=8, micro_batch_size=2, batch_ramp={64: 2}),
     ["2 sequences / 1 data-parallel ranks / micro_batch_size 2 = 1 micro-batches, but pp=2 needs at least 2"]),
    (dict(pp=2, pp_schedule="zero_bubble"), dict(batch_size=5, micro_batch_size=1),
     ["5 sequences / 1 data-parallel ranks / micro_batch_size 1 = 5 micro-batches, which do not divide into "
      "5//2 = 2 rounds (zero_bubble)"]),
    (dict(pp=2), dict(batch_size=5, micro_batch_size=1), []),
    (dict(pp=4, pp_schedule="interleaved"), dict(batch_size=6, micro_batch_size=1),
     ["8 pipeline stages need as many layers, but the pattern has 6"]),
    (dict(pp=2, pp_stages_per_rank=2), dict(batch_size=8, micro_batch_size=1),
     ["the schedule 1f1b has 1 stage a rank, not pp_stages_per_rank=2"]),
    (dict(pp=2, pp_stages_per_rank=1, pp_schedule="interleaved"), dict(batch_size=8, micro_batch_size=1),
     ["the schedule interleaved needs at least 2 stages a rank, not pp_stages_per_rank=1"]),
])
def test_what_a_pipeline_cannot_take(layout, data, expected):
    assert pipeline_misfits(make("(*E)x3"), Data(**data), Parallel(**layout)) == expected
