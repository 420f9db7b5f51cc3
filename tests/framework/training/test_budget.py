"""Budgets against a step-by-step simulation."""

from hypothesis import given
from hypothesis import strategies as st

from framework.recipe.schema import Data, Training
from framework.training.budget import make_budget
from framework.training.shares import micro_batches

ramps = st.dictionaries(st.integers(1, 3000), st.integers(1, 12), max_size=3)
data_settings = st.builds(Data, seq_len=st.integers(1, 9), batch_size=st.integers(1, 12), batch_ramp=ramps)


def simulate(data, num_steps):
    """(samples before, batch size, tokens after) of every step, in the words of the recipe's field."""
    samples, rows = 0, []
    for _ in range(num_steps):
        size = next((size for until, size in sorted(data.batch_ramp.items()) if samples * data.seq_len < until),
                    data.batch_size)
        rows.append((samples, size, (samples + size) * data.seq_len))
        samples += size
    return rows


@given(data_settings, st.integers(1, 400))
def test_steps(data, steps):
    budget = make_budget(data, Training(steps=steps))
    ours = [(budget.samples_before(s), budget.batch_size(s), budget.tokens_after(s)) for s in range(1, steps + 1)]
    assert ours == simulate(data, steps)
    assert budget.num_steps == steps


@given(data_settings, st.integers(1, 4000))
def test_a_token_budget_ends_with_the_first_step_that_meets_it(data, tokens):
    budget = make_budget(data, Training(tokens=tokens))
    assert budget.tokens_after(budget.num_steps) >= tokens
    assert budget.num_steps == 1 or budget.tokens_after(budget.num_steps - 1) < tokens


@given(st.integers(0, 1000), st.integers(1, 8), st.integers(1, 6), st.none() | st.integers(1, 10))
def test_every_sample_of_a_step_is_taken_once_on_any_layout(first, share, ranks, size):
    taken = []
    for index in range(ranks):
        forwards = list(micro_batches(first, share * ranks, size, index, ranks))
        assert len(forwards) == len(list(micro_batches(first, share * ranks, size, 0, ranks)))
        taken += [sample for begin, count in forwards for sample in range(begin, begin + count)]
    assert taken == list(range(first, first + share * ranks))
