"""Which tokens the i-th training sample holds: a pure function of i and a seed, with no state and no table.

An epoch cuts the stream of tokens, seen as a ring, into chunks of `seq_len`; the grid starts at a place drawn per
epoch, and the chunks come in the order of a keyed permutation (a Feistel network with cycle walking). So a sampler's
whole state is the number of samples consumed, and it knows nothing of ranks.
"""

from dataclasses import dataclass

import numpy as np

ROUNDS = 6


@dataclass(frozen=True)
class Sampler:
    """Samples of one stream of `num_tokens` tokens.

    Each epoch visits `num_chunks = num_tokens // seq_len` chunks once each; the tokens left over (fewer than
    `seq_len`) are others every epoch.
    """

    num_tokens: int
    seq_len: int
    seed: int

    def __post_init__(self) -> None:
        assert self.num_tokens >= self.seq_len > 0

    @property
    def num_chunks(self) -> int:
        return self.num_tokens // self.seq_len

    def starts(self, samples: np.ndarray) -> np.ndarray:
        """First token of each sample, int64, given the samples' numbers (any shape, non-negative)."""
        samples = np.asarray(samples, dtype=np.int64)
        epoch = (samples // self.num_chunks).astype(np.uint64)
        key = mixed(mixed(np.uint64(self.seed)) ^ epoch)
        chunk = permuted(samples % self.num_chunks, self.num_chunks, key)
        offset = (mixed(~key) % np.uint64(self.num_tokens)).astype(np.int64)
        return (offset + chunk * self.seq_len) % self.num_tokens


def permuted(index: np.ndarray, size: int, key: np.ndarray) -> np.ndarray:
    """The images of `index` (int64, in [0, size)) under the permutation of [0, size) that each `key` (uint64) names.

    A Feistel network permutes the next power of four; walking its cycles until one is back inside [0, size) leaves a
    permutation of the smaller set, in fewer than four applications on average.
    """
    half_bits = np.uint64(max(1, ((size - 1).bit_length() + 1) // 2))
    key = np.broadcast_to(key, index.shape)
    image = _feistel(index.astype(np.uint64), half_bits, key)
    outside = image >= size
    while outside.any():
        image[outside] = _feistel(image[outside], half_bits, key[outside])
        outside = image >= size
    return image.astype(np.int64)


def mixed(value: np.ndarray) -> np.ndarray:
    """Hash of 64 bits to 64 bits (the finaliser of SplitMix64; Steele, Lea and Flood 2014)."""
    with np.errstate(over="ignore"):
        value = np.asarray(value, dtype=np.uint64) + np.uint64(0x9E3779B97F4A7C15)
        value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return value ^ (value >> np.uint64(31))


def _feistel(value: np.ndarray, half_bits: np.uint64, key: np.ndarray) -> np.ndarray:
    mask = (np.uint64(1) << half_bits) - np.uint64(1)
    left, right = value >> half_bits, value & mask
    for number in range(ROUNDS):
        round_key = mixed(key ^ np.uint64(number))
        left, right = right, left ^ (mixed(right ^ round_key) & mask)
    return (left << half_bits) | right
