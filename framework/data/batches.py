"""Training samples by number, and the windows of the validation stream. Arrays are NumPy, int64.

B sequences of a batch, S tokens of a sequence, N sequences of all batches.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from framework.data.blend import Blend
from framework.data.indexed import TokenStream
from framework.data.sampler import Sampler, mixed
from framework.errors import UserError

IGNORED = -100


@dataclass(frozen=True)
class Part:
    """Documents [first, last) of a stream: what of it one split holds."""

    stream: TokenStream
    first: int
    last: int

    @property
    def start(self) -> int:
        """First token, as the stream counts them."""
        return int(self.stream.document_ends[self.first - 1]) if self.first else 0

    @property
    def num_tokens(self) -> int:
        stop = int(self.stream.document_ends[self.last - 1]) if self.last else 0
        return stop - self.start

    def tokens(self, start: int, stop: int) -> np.ndarray:
        """Tokens [start, stop) of the part, [stop - start]."""
        return self.stream.tokens(self.start + start, self.start + stop)

    def documents(self, positions: np.ndarray) -> np.ndarray:
        """The number in the part, from 0, of the document at each position."""
        return self.stream.documents(self.start + positions) - self.first


def whole(stream: TokenStream) -> Part:
    """All documents of a stream."""
    return Part(stream, 0, stream.num_documents)


class TrainData:
    """The endless sequence of training samples: a blend of parts, each in the order of its sampler.

    Sample i depends on i and the seed alone. Raises UserError if a part is shorter than one sequence.
    """

    def __init__(self, parts: Sequence[Part], weights: Sequence[float], seq_len: int, seed: int, vocab_size: int):
        for part in parts:
            if part.num_tokens < seq_len:
                raise UserError(
                    f"data set {part.stream.prefix}: {part.num_tokens} tokens for training, fewer than one sequence of "
                    f"data.seq_len={seq_len}"
                )
        self.parts, self.seq_len, self.vocab_size = tuple(parts), seq_len, vocab_size
        self._blend = Blend(weights)
        # Each part has its own order, also where two are equally long.
        self._samplers = [
            Sampler(part.num_tokens, seq_len, int(mixed(mixed(np.uint64(seed)) ^ np.uint64(number))))
            for number, part in enumerate(parts)
        ]

    @property
    def num_tokens(self) -> int:
        """Tokens of all parts together."""
        return sum(part.num_tokens for part in self.parts)

    def batch(self, first_sample: int, count: int) -> np.ndarray:
        """Tokens of samples [first_sample, first_sample + count): [count, seq_len + 1].

        The last token of a row is a target only. A row that reaches its part's end goes on at its start.
        """
        tokens_BS = np.empty((count, self.seq_len + 1), dtype=np.int64)
        for row, (part, start) in enumerate(self._places(first_sample, count)):
            until_end = min(self.seq_len + 1, part.num_tokens - start)
            tokens_BS[row, :until_end] = part.tokens(start, start + until_end)
            tokens_BS[row, until_end:] = part.tokens(0, self.seq_len + 1 - until_end)
        _check_vocabulary(tokens_BS, self.vocab_size)
        return tokens_BS

    def documents(self, first_sample: int, count: int) -> np.ndarray:
        """The document of each input token of the same samples: [count, seq_len], from 0 in every row, ascending.

        A document's end-of-document token belongs to it.
        """
        documents_BS = np.empty((count, self.seq_len), dtype=np.int64)
        for row, (part, start) in enumerate(self._places(first_sample, count)):
            positions_S = start + np.arange(self.seq_len)
            wrapped_S = positions_S >= part.num_tokens
            numbers_S = part.documents(positions_S % part.num_tokens) + wrapped_S * (part.last - part.first)
            documents_BS[row] = numbers_S - numbers_S[0]
        return documents_BS

    def _places(self, first_sample: int, count: int) -> list[tuple[Part, int]]:
        data_sets, samples = self._blend.locate(np.arange(first_sample, first_sample + count))
        starts = np.empty_like(samples)
        for number, sampler in enumerate(self._samplers):
            chosen = data_sets == number
            starts[chosen] = sampler.starts(samples[chosen])
        return [(self.parts[number], int(start)) for number, start in zip(data_sets, starts, strict=True)]


class ValidationData:
    """Every token of the validation parts, predicted exactly once, in windows of `seq_len`.

    Each part is read as one stream with an end-of-document token before it, so that its first token is predicted
    too. The last window of a part is filled up with targets of -100, which the loss ignores.

    num_bytes: of text behind the tokens; bits per byte = nats / ln 2 / num_bytes. None: not known.
    """

    def __init__(self, parts: Sequence[Part], eod: int, seq_len: int, vocab_size: int, num_bytes: int | None):
        self.parts = tuple(part for part in parts if part.num_tokens)
        self.eod, self.seq_len, self.vocab_size, self.num_bytes = eod, seq_len, vocab_size, num_bytes
        windows = [-(-part.num_tokens // seq_len) for part in self.parts]
        self._first_windows = np.concatenate([[0], np.cumsum(windows, dtype=np.int64)])

    @property
    def num_windows(self) -> int:
        return int(self._first_windows[-1])

    @property
    def num_tokens(self) -> int:
        """Predicted tokens: all of them."""
        return sum(part.num_tokens for part in self.parts)

    def batch(self, first_window: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        """(tokens, targets) of windows [first_window, first_window + count), each [count, seq_len].

        Windows past the last are filling alone, so that all ranks can take equally many.
        """
        tokens_BS = np.full((count, self.seq_len), self.eod, dtype=np.int64)
        targets_BS = np.full((count, self.seq_len), IGNORED, dtype=np.int64)
        for row, (part, start, stop) in self._places(first_window, count):
            stretch = part.tokens(max(start - 1, 0), stop)
            targets_BS[row, : stop - start] = stretch[-(stop - start):]
            first_input = int(start == 0)
            tokens_BS[row, first_input : stop - start] = stretch[:-1]
        _check_vocabulary(targets_BS, self.vocab_size)
        return tokens_BS, targets_BS

    def documents(self, first_window: int, count: int) -> np.ndarray:
        """The document of each input token of the same windows: [count, seq_len], from 0 in every row, ascending."""
        documents_BS = np.zeros((count, self.seq_len), dtype=np.int64)
        for row, (part, start, stop) in self._places(first_window, count):
            numbers_S = part.documents(np.arange(start - 1, stop - 1))
            if start == 0:
                # The end-of-document token in front stands for a document before the first.
                numbers_S[0] = -1
            documents_BS[row, : stop - start] = numbers_S - numbers_S[0]
            documents_BS[row, stop - start :] = numbers_S[-1] - numbers_S[0] + 1
        return documents_BS

    def _places(self, first_window: int, count: int) -> list[tuple[int, tuple[Part, int, int]]]:
        """(row, (part, first target, last target + 1)) of the windows that hold tokens."""
        places = []
        for window in range(first_window, min(first_window + count, self.num_windows)):
            number = int(np.searchsorted(self._first_windows, window, side="right")) - 1
            start = (window - int(self._first_windows[number])) * self.seq_len
            part = self.parts[number]
            places.append((window - first_window, (part, start, min(start + self.seq_len, part.num_tokens))))
        return places


def _check_vocabulary(tokens: np.ndarray, vocab_size: int) -> None:
    if tokens.size and tokens.max() >= vocab_size:
        raise UserError(f"the data holds token {tokens.max()}, above model.vocab_size={vocab_size}")
