"""A run's tokenizer as the files that transformers reads."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from framework.data import load_tokenizer
from framework.errors import UserError

if TYPE_CHECKING:
    from framework.data import Tokenizer

NAMES = ("tokenizer.model", "tokenizer.json")
CONFIG = "tokenizer_config.json"
SPACE_MARK = "\u2581"
NUM_SAMPLES, SAMPLE_PIECES = 200, 40


def find_tokenizer(folder: Path) -> Tokenizer | None:
    """The tokenizer that stands in a folder, the first of NAMES that can be read.

    None where there is no such file. Raises UserError where there are, and none can be read: a tokenizer.model, say,
    may be of another library than SentencePiece.
    """
    wrong = None
    for path in (folder / name for name in NAMES):
        if path.is_file():
            try:
                return load_tokenizer(path)
            except UserError as error:
                wrong = wrong or error
    if wrong is not None:
        raise wrong
    return None


def write_tokenizer(tokenizer: Tokenizer | None, folder: Path) -> str:
    """Write what there can be of a tokenizer; returns what that is, in a few words.

    A tokenizer.json is copied. A SentencePiece model is copied, and told as a tokenizer.json too where that gives the
    same ids for the same text, which is tried.
    """
    if tokenizer is None:
        return "none: the run has no tokenizer"
    shutil.copyfile(tokenizer.path, folder / f"tokenizer{tokenizer.path.suffix}")
    end = tokenizer.piece(tokenizer.eod)
    config: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": end,
                              "clean_up_tokenization_spaces": False}
    if tokenizer.path.suffix == ".json":
        given = tokenizer.path.with_name(CONFIG)
        if given.is_file():
            shutil.copyfile(given, folder / CONFIG)
            return "tokenizer.json and its config, copied"
        (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n")
        return "tokenizer.json, copied"
    told = byte_pairs(tokenizer)
    if told is None or not same(tokenizer, told):
        return "tokenizer.model alone: no tokenizer.json gives the same ids, so transformers cannot load it by itself"
    told.save(str(folder / "tokenizer.json"))
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n")
    return "tokenizer.json, made of tokenizer.model"


def byte_pairs(tokenizer: Tokenizer) -> Any:
    """A `tokenizers.Tokenizer` of a SentencePiece model of byte pairs with byte fallback; None where it has no bytes.

    SentencePiece merges the pair whose result has the highest score; here every pair that makes a piece is a merge, in
    the order of scores.
    """
    from sentencepiece import SentencePieceProcessor
    from tokenizers import AddedToken, decoders, models, normalizers
    from tokenizers import Tokenizer as Engine

    model = SentencePieceProcessor(model_file=str(tokenizer.path))
    count = model.vocab_size()
    vocabulary = {model.id_to_piece(token): token for token in range(count)}
    if not any(model.is_byte(token) for token in range(count)) or len(vocabulary) < count:
        return None
    ordinary = {piece: token for piece, token in vocabulary.items()
                if not (model.is_byte(token) or model.is_control(token) or model.is_unknown(token))}
    merges = []
    for piece, _ in sorted(ordinary.items(), key=lambda each: (-model.get_score(each[1]), each[1])):
        pairs = ((piece[:cut], piece[cut:]) for cut in range(1, len(piece)))
        merges += sorted((pair for pair in pairs if ordinary.keys() >= set(pair)),
                         key=lambda pair: (ordinary[pair[0]], ordinary[pair[1]]))
    unknown = model.id_to_piece(model.unk_id())
    engine = Engine(models.BPE(vocabulary, merges, unk_token=unknown, byte_fallback=True, fuse_unk=True))
    engine.normalizer = normalizers.Replace(" ", SPACE_MARK)
    engine.decoder = decoders.Sequence([decoders.Replace(SPACE_MARK, " "), decoders.ByteFallback(), decoders.Fuse()])
    engine.add_special_tokens([AddedToken(model.id_to_piece(token), special=True, normalized=False)
                               for token in range(count) if model.is_control(token) or model.is_unknown(token)])
    return engine


def same(tokenizer: Tokenizer, engine: Any) -> bool:
    """Whether both give the same ids for random texts of the tokenizer's pieces, and the same texts back."""
    for text in _samples(tokenizer):
        ids = tokenizer.encode(text)
        if engine.encode(text, add_special_tokens=False).ids != ids or engine.decode(ids) != tokenizer.decode(ids):
            return False
    return True


def _samples(tokenizer: Tokenizer) -> Iterator[str]:
    """Texts of random ids; a U+2581, which both would read as a space, is left out, and so are special pieces."""
    draw = random.Random(0)
    yield from ("", " ", "  a  b\n\n\tc ", "Zażółć gęślą jaźń \U0001f600\u4f60\u597d e\u0301 \u00a0\x00x")
    for _ in range(NUM_SAMPLES):
        ids = (draw.randrange(tokenizer.vocab_size) for _ in range(SAMPLE_PIECES))
        text = tokenizer.decode([token for token in ids if not tokenizer.piece(token).startswith("<")])
        yield text.replace(SPACE_MARK, " ")
