"""From the data section of a recipe to samples: finds, or trains and prepares, what it names."""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from framework.data.batches import Part, TrainData, ValidationData, whole
from framework.data.corpora import BUILT_IN, Corpus, find_corpus
from framework.data.indexed import TokenStream, prefix_of
from framework.data.malformed import refuse
from framework.data.prepare import Rules, prepare_corpus
from framework.data.prepared import Manifest, Prepared, is_prepared, open_prepared
from framework.data.storage import data_root, exclusive
from framework.data.tokenizer_training import settings_fingerprint, train_tokenizer
from framework.data.tokenizers import Tokenizer, load_tokenizer
from framework.errors import UserError

if TYPE_CHECKING:
    from framework.recipe.schema import Data

TRAINED = "sentencepiece"


@dataclass(frozen=True)
class DataSet:
    """What a recipe trains and validates on.

    validation: has no windows where nothing is held out. tokenizer: None for a bare Megatron data set with which the
        recipe names none. manifests: of the prepared corpora, in the order of the recipe.
    """

    train: TrainData
    validation: ValidationData
    tokenizer: Tokenizer | None
    manifests: tuple[Manifest, ...]


@dataclass(frozen=True)
class _Split:
    """A corpus, opened. num_bytes: of the text behind the validation part; None where nothing tells."""

    train: Part
    validation: Part
    num_bytes: int | None


def open_data(data: "Data", vocab_size: int, seed: int, *, progress: bool = True) -> DataSet:
    """The data of a recipe, prepared first where it is not there yet.

    Safe to call from any number of processes at once: one prepares, the others wait. `data.corpus` (or each key of
    `data.blend`) is a built-in name, a prepared folder or the name that one was given, the prefix of a Megatron
    `.bin/.idx` pair, or raw files: a file, folder or glob. A prepared folder keeps the split it was prepared with, a
    bare pair holds out its last documents. Raises UserError for all that the user can mend.
    """
    weights = _weights(data)
    with _telling("data.corpus" if data.corpus else "data.blend"):
        found = [_find(name) for name in weights]
    tokenizer = _tokenizer(data, found, vocab_size)
    rules = Rules(data.validation_fraction, malformed=data.malformed)
    opened = [
        prepare_corpus(corpus, tokenizer, rules, progress=progress) if isinstance(corpus, Corpus) else corpus
        for corpus in found
    ]
    splits = [_split(each, data.validation_fraction) for each in opened]
    return DataSet(
        TrainData([split.train for split in splits], list(weights.values()), data.seq_len, seed, vocab_size),
        _validation(splits, tokenizer, data.seq_len, vocab_size),
        tokenizer,
        tuple(each.manifest for each in opened if isinstance(each, Prepared)),
    )


def corpus_tokenizer(corpora: Sequence[Corpus], vocab_size: int, rules: Rules) -> Tokenizer:
    """The SentencePiece tokenizer of `vocab_size` entries trained on the corpora; trained once, then found."""
    corpus = corpora[0] if len(corpora) == 1 else _joined(corpora)
    parts = (corpus.fingerprint, settings_fingerprint(), rules.field, rules.validation_fraction)
    digest = hashlib.sha256(repr(parts).encode()).hexdigest()[:12]
    path = data_root() / "tokenizers" / f"{corpus.name}-{vocab_size}-{digest}.model"
    with exclusive(path):
        if not path.is_file():
            # Preparing reads every record, and reports the malformed ones.
            report = refuse if rules.malformed == "fail" else lambda message: None
            train_tokenizer(corpus, vocab_size, path, field=rules.field,
                            validation_fraction=rules.validation_fraction, report=report)
    return load_tokenizer(path)


@contextmanager
def _telling(key: str) -> Iterator[None]:
    """Puts the recipe's key in front of what is wrong with its value."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{key}: {error}") from error


def _weights(data: "Data") -> dict[str, float]:
    if bool(data.corpus) == bool(data.blend):
        raise UserError(f"data.corpus={data.corpus}, data.blend={data.blend}: exactly one of the two is needed")
    return dict(data.blend) or {data.corpus: 1.0}


def _find(name: str) -> Corpus | Prepared | TokenStream:
    if name in BUILT_IN:
        return find_corpus([name])
    path = Path(name)
    if is_prepared(path):
        return open_prepared(path)
    prefix = prefix_of(path)
    if Path(f"{prefix}.idx").is_file():
        return TokenStream(prefix)
    # Raw files win over the folders prepared from them, which may be of an earlier state.
    named = [] if path.exists() else _prepared_as(name)
    if len(named) > 1:
        raise UserError(f"corpus {name}: name one of {', '.join(map(str, named))}")
    return open_prepared(named[0]) if named else find_corpus([name])


def _prepared_as(name: str) -> list[Path]:
    """Folders that `prepare_corpus` made under a name."""
    folders = sorted(data_root().iterdir()) if data_root().is_dir() else []
    return [folder for folder in folders if folder.name.rpartition("-")[0] == name and is_prepared(folder)]


def _tokenizer(data: "Data", found: Iterable, vocab_size: int) -> Tokenizer | None:
    """The one tokenizer of all: that of the prepared corpora, else the recipe's file, else one trained."""
    prepared = [each for each in found if isinstance(each, Prepared)]
    raw = [each for each in found if isinstance(each, Corpus)]
    if data.tokenizer != TRAINED:
        with _telling("data.tokenizer"):
            tokenizer = load_tokenizer(data.tokenizer)
    elif prepared:
        tokenizer = prepared[0].tokenizer()
    elif raw:
        tokenizer = corpus_tokenizer(raw, vocab_size, Rules(data.validation_fraction, malformed=data.malformed))
    else:
        return None
    for each in prepared:
        if each.manifest.tokenizer_fingerprint != tokenizer.fingerprint:
            raise UserError(f"{each.folder}: prepared with another tokenizer than {tokenizer.path}; allowed: the same "
                            "one for all corpora")
    if tokenizer.vocab_size > vocab_size:
        raise UserError(
            f"model.vocab_size={vocab_size} is below the {tokenizer.vocab_size} entries of tokenizer {tokenizer.path}; "
            f"allowed: {tokenizer.vocab_size} or more"
        )
    return tokenizer


def _split(opened: Prepared | TokenStream, validation_fraction: float) -> _Split:
    if isinstance(opened, Prepared):
        return _Split(whole(opened.train), whole(opened.validation), opened.manifest.validation.bytes)
    # A bare data set does not say which documents were held out: its last ones are.
    first_held_out = opened.num_documents - round(validation_fraction * opened.num_documents)
    return _Split(
        Part(opened, 0, first_held_out), Part(opened, first_held_out, opened.num_documents),
        None if first_held_out < opened.num_documents else 0,
    )


def _validation(
    splits: Sequence[_Split], tokenizer: Tokenizer | None, seq_len: int, vocab_size: int
) -> ValidationData:
    known = all(split.num_bytes is not None for split in splits)
    return ValidationData(
        [split.validation for split in splits], tokenizer.eod if tokenizer else _last_token(splits[0].train), seq_len,
        vocab_size, sum(split.num_bytes for split in splits) if known else None,
    )


def _last_token(part: Part) -> int:
    """What ends documents in a data set that comes without its tokenizer."""
    return int(part.tokens(part.num_tokens - 1, part.num_tokens)[0])


def _joined(corpora: Sequence[Corpus]) -> Corpus:
    digest = hashlib.sha256("".join(corpus.fingerprint for corpus in corpora).encode()).hexdigest()
    return Corpus("blend", tuple(file for corpus in corpora for file in corpus.files), digest)
