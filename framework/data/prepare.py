"""Preparing a corpus: raw text to a folder of Megatron `.bin/.idx` data sets, once, whole or not at all."""

import hashlib
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from framework.data.corpora import Corpus
from framework.data.encoding import Encoder, encoded
from framework.data.malformed import OnMalformed, Skipped, refuse
from framework.data.prepared import FORMAT, MANIFEST, SPLITS, Manifest, Prepared, is_prepared, open_prepared
from framework.data.progress import Bar, progress_bar
from framework.data.sources import Holdout, units
from framework.data.storage import data_root, exclusive
from framework.data.tokenizers import Tokenizer
from framework.data.writing import SplitWriter, token_type
from framework.errors import UserError
from framework.files import atomic_folder

# A worker takes a third of a second to start, about what it takes to encode this much.
BYTES_WORTH_A_WORKER = 2 << 20


@dataclass(frozen=True)
class Rules:
    """What of the preparation decides its result. `field` is that of the text in JSON lines and tables."""

    validation_fraction: float = 0.05
    field: str = "text"
    malformed: OnMalformed = "fail"


def prepare_corpus(
    corpus: Corpus, tokenizer: Tokenizer, rules: Rules = Rules(), *, workers: int | None = None, progress: bool = True
) -> Prepared:
    """The prepared folder `data_root()/NAME-FINGERPRINT` of a corpus, made if it is not there.

    Its tokens depend on the corpus, the tokenizer and the rules alone, not on the number of workers (None: one a
    core). Of several processes that call this one prepares while the others wait. Killed, it leaves nothing under the
    final name, and the next call starts clean. Raises UserError for input that cannot be read, with file and line, and
    where every document would be held out.
    """
    folder = data_root() / f"{corpus.name}-{_fingerprint(corpus, tokenizer, rules)}"
    with exclusive(folder):
        if not is_prepared(folder):
            with atomic_folder(folder) as partial:
                _fill(partial, corpus, tokenizer, rules, _num_workers(corpus, workers), progress)
    return open_prepared(folder)


def _fill(
    folder: Path, corpus: Corpus, tokenizer: Tokenizer, rules: Rules, num_workers: int, progress: bool
) -> None:
    with progress_bar(f"preparing {corpus.name}", corpus.num_bytes, progress) as bar:
        writers, num_malformed = _write_splits(folder, corpus, tokenizer, rules, num_workers, bar)
    if not writers["train"].documents:
        raise UserError(
            f"corpus {corpus.name}: none of its {writers['validation'].documents} documents is left for training at "
            f"validation_fraction {rules.validation_fraction}; 0 holds none out"
        )
    manifest = Manifest(
        corpus.name, FORMAT, _copy_tokenizer(tokenizer, folder), tokenizer.fingerprint, corpus.fingerprint,
        tokenizer.vocab_size, tokenizer.eod, rules.validation_fraction, num_malformed,
        **{split: writer.totals() for split, writer in writers.items()},
    )
    (folder / MANIFEST).write_text(manifest.to_json())


def _write_splits(
    folder: Path, corpus: Corpus, tokenizer: Tokenizer, rules: Rules, num_workers: int, bar: Bar
) -> tuple[dict[str, SplitWriter], int]:
    """(writers, closed, by split; number of malformed records)."""
    dtype = token_type(tokenizer.vocab_size)
    writers = {split: SplitWriter(folder / split, dtype) for split in SPLITS}
    skipped = Skipped(bar.tell)
    encoder = Encoder(tokenizer.path.resolve(), dtype, Holdout(rules.validation_fraction), rules.malformed)
    work = units(list(corpus.files), rules.field, refuse if rules.malformed == "fail" else skipped)
    for unit in encoded(work, encoder, num_workers):
        for message in unit.malformed:
            skipped(message)
        for document in unit.documents:
            writers["validation" if document.held_out else "train"].add(document)
        bar.advance(unit.num_source_bytes)
    for writer in writers.values():
        writer.close()
    return writers, skipped.count


def _num_workers(corpus: Corpus, workers: int | None) -> int:
    if workers is not None and workers < 1:
        raise UserError(f"{workers} workers: at least 1 is needed")
    if workers is not None:
        return workers
    return min(len(os.sched_getaffinity(0)), 1 + corpus.num_bytes // BYTES_WORTH_A_WORKER)


def _fingerprint(corpus: Corpus, tokenizer: Tokenizer, rules: Rules) -> str:
    parts = [FORMAT, corpus.fingerprint, tokenizer.fingerprint, tokenizer.eod, vars(rules)]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:12]


def _copy_tokenizer(tokenizer: Tokenizer, folder: Path) -> str:
    name = f"tokenizer{tokenizer.path.suffix}"
    shutil.copyfile(tokenizer.path, folder / name)
    config = tokenizer.path.with_name("tokenizer_config.json")
    if tokenizer.path.suffix == ".json" and config.is_file():
        shutil.copyfile(config, folder / config.name)
    return name
