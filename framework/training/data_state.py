"""Which data a run is on: a resume on other text, or other tokens for it, would not be the same run."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from framework.errors import UserError
from framework.files import write_atomically

if TYPE_CHECKING:
    from framework.data import DataSet
    from framework.training.peers import Peers

FILE_NAME = "data.json"


def hold_data(data: DataSet, folder: Path) -> None:
    """Store what the data is, and its tokenizer, in a run folder."""
    _store_tokenizer(data, folder)
    write_atomically(folder / FILE_NAME, json.dumps(_facts(data), indent=1) + "\n")


def refuse_other_data(data: DataSet, folder: Path) -> None:
    """Raise UserError where the data is not what a run was started on, or the run does not tell.

    Sizes and the tokenizer's hash are compared, not places and times of files, so that a corpus may be copied.
    """
    try:
        stored = json.loads((folder / FILE_NAME).read_text())
        if not isinstance(stored, dict):
            raise ValueError
    except (OSError, ValueError):
        raise UserError(f"{folder / FILE_NAME}: missing or damaged; allowed: a JSON object that tells what data the "
                        "run was started on") from None
    facts = _facts(data)
    if key := _first_difference(stored, facts):
        raise UserError(f"{folder}: the run was started on other data ({key} was {stored.get(key)}, now "
                        f"{facts.get(key)}); allowed: the same data, or another --name")


def require_same_data(data: DataSet, peers: Peers) -> None:
    """Collective; raise UserError where the data of some ranks is not that of rank 0: each machine may have its own."""
    first, *others = peers.gather(_facts(data))
    for rank, facts in enumerate(others, start=1):
        if key := _first_difference(first, facts):
            raise UserError(f"rank {rank} has other data than rank 0 ({key} is {facts[key]}, on rank 0 {first[key]}); "
                            "allowed: the same data on all machines")


def _first_difference(before: dict[str, Any], now: dict[str, Any]) -> str | None:
    """The key of a fact that differs."""
    return next((key for key in sorted(before.keys() | now.keys()) if before.get(key) != now.get(key)), None)


def _facts(data: DataSet) -> dict[str, Any]:
    return {
        "tokenizer_sha256": data.tokenizer.fingerprint if data.tokenizer else None,
        "corpora": [{"name": manifest.name, "train": asdict(manifest.train), "validation": asdict(manifest.validation)}
                    for manifest in data.manifests],
        "train_tokens": data.train.num_tokens,
        "validation_tokens": data.validation.num_tokens,
    }


def _store_tokenizer(data: DataSet, folder: Path) -> None:
    """Copy the tokenizer into the run folder, which then generates text on its own."""
    if data.tokenizer is not None:
        _copy(data.tokenizer.path, folder / f"tokenizer{data.tokenizer.path.suffix}")
        config = data.tokenizer.path.with_name("tokenizer_config.json")
        if data.tokenizer.path.suffix == ".json" and config.is_file():
            _copy(config, folder / config.name)


def _copy(source: Path, target: Path) -> None:
    """The recipe may name the run folder's own file, which stays."""
    if not (target.exists() and target.samefile(source)):
        shutil.copyfile(source, target)
