"""Samples that need no corpus.

B sequences of a batch, S tokens of a sequence.
"""

from dataclasses import dataclass

import numpy as np


class RandomTokens:
    """Stands in for the train split of a data set: sample i depends on the seed and i alone."""

    def __init__(self, seq_len: int, vocab_size: int, seed: int) -> None:
        self.seq_len, self.vocab_size, self.seed = seq_len, vocab_size, seed

    def batch(self, first_sample: int, count: int) -> np.ndarray:
        """Tokens of samples [first_sample, first_sample + count): int64 [count, seq_len + 1]."""
        return np.stack([
            np.random.default_rng((self.seed, sample, 0)).integers(self.vocab_size, size=self.seq_len + 1)
            for sample in range(first_sample, first_sample + count)
        ])

    def documents(self, first_sample: int, count: int) -> np.ndarray:
        """The document of each input token: int64 [count, seq_len], from 0 in every row; about four in a row."""
        begins_BS = np.stack([
            np.random.default_rng((self.seed, sample, 1)).random(self.seq_len) < 4 / self.seq_len
            for sample in range(first_sample, first_sample + count)
        ])
        begins_BS[:, 0] = False
        return begins_BS.cumsum(1)


@dataclass(frozen=True)
class RandomData:
    """What a Trainer asks of a data set."""

    train: RandomTokens
