"""Units of work to tokens, by several processes, in the order of the units."""

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from framework.data.malformed import OnMalformed, refuse
from framework.data.sources import Holdout, Unit
from framework.data.tokenizers import Tokenizer, load_tokenizer

UNITS_PER_WORKER = 4


@dataclass(frozen=True)
class EncodedDocument:
    """tokens: with the end-of-document token at the end, in the type that the data set stores."""

    tokens: np.ndarray
    num_bytes: int
    held_out: bool


@dataclass(frozen=True)
class EncodedUnit:
    documents: tuple[EncodedDocument, ...]
    malformed: tuple[str, ...]
    num_source_bytes: int


@dataclass(frozen=True)
class Encoder:
    """What a worker needs to know; sent to each once."""

    tokenizer_path: Path
    dtype: type
    holdout: Holdout
    malformed: OnMalformed

    def load(self) -> Callable[[Unit], EncodedUnit]:
        tokenizer = load_tokenizer(self.tokenizer_path)
        return lambda unit: self._encode(unit, tokenizer)

    def _encode(self, unit: Unit, tokenizer: Tokenizer) -> EncodedUnit:
        malformed: list[str] = []
        report = refuse if self.malformed == "fail" else malformed.append
        documents = tuple(
            EncodedDocument(
                np.array([*tokenizer.encode(document.text), tokenizer.eod], self.dtype), document.num_bytes,
                document.held_out,
            )
            for document in unit.documents(self.holdout, report)
        )
        return EncodedUnit(documents, tuple(malformed), unit.num_source_bytes)


def encoded(units: Iterable[Unit], encoder: Encoder, num_workers: int) -> Iterator[EncodedUnit]:
    """Each unit's documents, in the units' order however many workers there are (1: none, all in this process).

    At most `UNITS_PER_WORKER` units a worker are in memory. The workers end with this process, also if it is killed.
    """
    if num_workers == 1:
        yield from map(encoder.load(), units)
        return
    # Not fork: the caller may run threads, which a forked child would miss.
    context = multiprocessing.get_context("forkserver")
    pool = ProcessPoolExecutor(num_workers, context, _start_worker, (encoder,))
    try:
        waiting = deque()
        for unit in units:
            waiting.append(pool.submit(_encode_in_worker, unit))
            if len(waiting) == num_workers * UNITS_PER_WORKER:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _start_worker(encoder: Encoder) -> None:
    global _encode
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)  # SLURM's warning may reach every process; this one's parent obeys
    _encode = encoder.load()
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    multiprocessing.parent_process().join()
    os._exit(1)


def _encode_in_worker(unit: Unit) -> EncodedUnit:
    return _encode(unit)
