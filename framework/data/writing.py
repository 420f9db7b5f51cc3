"""Writing one split in Megatron's `.bin/.idx` layout, by megatron-core's builder.

megatron-core is imported when the first split is written: it takes seconds, and warns of much that it lacks.
"""

import warnings
from pathlib import Path

from framework.data.encoding import EncodedDocument
from framework.data.prepared import Totals


def token_type(vocab_size: int) -> type:
    """The type in which Megatron stores tokens of such a vocabulary: uint16, or int32 where that is too small."""
    return _megatron().DType.optimal_dtype(vocab_size)


class SplitWriter:
    """Appends documents to `prefix.bin`, counting; `close` writes `prefix.idx`."""

    def __init__(self, prefix: Path, dtype: type):
        self._prefix = prefix
        self._builder = _megatron().IndexedDatasetBuilder(f"{prefix}.bin", dtype=dtype)
        self.documents = self.tokens = self.bytes = 0

    def add(self, document: EncodedDocument) -> None:
        self._builder.add_document(document.tokens, [len(document.tokens)])
        self.documents += 1
        self.tokens += len(document.tokens)
        self.bytes += document.num_bytes

    def close(self) -> None:
        self._builder.finalize(f"{self._prefix}.idx")

    def totals(self) -> Totals:
        return Totals(self.documents, self.tokens, self.bytes)


def _megatron():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from megatron.core.datasets import indexed_dataset
    return indexed_dataset
