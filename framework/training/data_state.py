"""Which data a run is on: a resume on other text, or other tokens for it, would not be the same run."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from framework.errors import UserError
from framework.training.files import write_atomically

if TYPE_CHECKING:
    from framework.data import DataSet

FILE_NAME = "data.json"


def hold_data(data: DataSet, folder: Path) -> None:
    """Store what the data is, and its tokenizer, or compare with what an earlier start of the run stored.

    Raises UserError where they differ. Sizes and the tokenizer's hash are compared, not places and times of files, so
    that a corpus may be copied.
    """
    facts = _facts(data)
    path = folder / FILE_NAME
    if path.exists() and (stored := json.loads(path.read_text())) != facts:
        key = next(key for key in facts if facts[key] != stored.get(key))
        raise UserError(f"{folder}: the run was started on other data ({key} was {stored.get(key)}, now {facts[key]}); "
                        "allowed: the same data, or another --name")
    _store_tokenizer(data, folder)
    write_atomically(path, json.dumps(facts, indent=1) + "\n")


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
        shutil.copyfile(data.tokenizer.path, folder / f"tokenizer{data.tokenizer.path.suffix}")
        config = data.tokenizer.path.with_name("tokenizer_config.json")
        if data.tokenizer.path.suffix == ".json" and config.is_file():
            shutil.copyfile(config, folder / config.name)
