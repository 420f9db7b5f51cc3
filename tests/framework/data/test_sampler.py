import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from framework.data.sampler import Sampler, permuted


@settings(max_examples=150, deadline=None)
@given(size=st.integers(1, 3000), key=st.integers(0, 2**64 - 1))
def test_a_key_names_a_permutation(size, key):
    image = permuted(np.arange(size), size, np.uint64(key))
    assert np.array_equal(np.sort(image), np.arange(size))


@settings(max_examples=60, deadline=None)
@given(num_tokens=st.integers(1, 4000), seq_len=st.integers(1, 64), seed=st.integers(0, 2**63),
       epoch=st.integers(0, 10**6))
def test_an_epoch_visits_every_chunk_once_and_no_token_twice(num_tokens, seq_len, seed, epoch):
    num_tokens = max(num_tokens, seq_len)
    sampler = Sampler(num_tokens, seq_len, seed)
    starts = sampler.starts(epoch * sampler.num_chunks + np.arange(sampler.num_chunks))
    tokens = (starts[:, None] + np.arange(seq_len)) % num_tokens
    assert len(np.unique(tokens)) == sampler.num_chunks * seq_len
    assert num_tokens - sampler.num_chunks * seq_len < seq_len


@settings(max_examples=60, deadline=None)
@given(cut=st.integers(0, 500), seed=st.integers(0, 100))
def test_a_sample_depends_on_its_number_alone(cut, seed):
    sampler = Sampler(1000, 7, seed)
    samples = np.arange(500)
    parts = [sampler.starts(samples[:cut]), sampler.starts(samples[cut:])]
    assert np.array_equal(np.concatenate(parts), sampler.starts(samples))


def test_epochs_and_seeds_differ_in_order_and_in_grid():
    sampler, other = Sampler(10_007, 10, 1), Sampler(10_007, 10, 2)
    first, second = np.split(sampler.starts(np.arange(2000)), 2)
    assert len({start % 10 for start in first}) <= 2  # one grid; a second residue behind the ring's seam
    for starts in (second, other.starts(np.arange(1000))):
        assert (starts == first).mean() < 0.01
    grids = {int(sampler.starts(np.array([epoch * 1000]))[0]) % 10 for epoch in range(50)}
    assert len(grids) == 10


def test_the_order_looks_random():
    size = 4096
    image = np.stack([permuted(np.arange(size), size, np.uint64(key)) for key in range(64)])
    # The mean distance between neighbours of a random order is size / 3; the first place takes any value.
    assert abs(np.abs(np.diff(image)).mean() / size - 1 / 3) < 0.01
    assert abs(image[:, 0].mean() / size - 0.5) < 0.15
    correlation = np.corrcoef(image)[~np.eye(64, dtype=bool)]
    assert np.abs(correlation).max() < 0.1


def test_large_sets_need_no_table():
    sampler = Sampler(10**13, 4096, 3)
    starts = sampler.starts(np.arange(10**9, 10**9 + 1000))
    assert len(np.unique(starts)) == 1000 and starts.max() > 10**12 and starts.min() >= 0
