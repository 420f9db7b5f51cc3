"""A run folder made of weights that come from elsewhere: its recipe, as if a file had stated it, and its first step."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from framework.convert.errors import plain_errors
from framework.convert.first_checkpoint import write_first_checkpoint
from framework.convert.our_weights import OurWeights
from framework.convert.tokenizer import CONFIG
from framework.data import open_data
from framework.errors import UserError
from framework.files import write_atomically
from framework.recipe import Loaded, Origin
from framework.recipe.yaml_reader import Entry
from framework.surgery.new_run import new_run_folder
from framework.training.code_state import write_code_state
from framework.training.data_state import FILE_NAME, hold_data
from framework.training.run_folder import write_recipe

if TYPE_CHECKING:
    from framework.data import Tokenizer
    from framework.recipe.schema import Data


def nested(fields: dict[str, Any]) -> dict[str, Any]:
    """Dotted keys as sections."""
    tree: dict[str, Any] = {}
    for key, value in fields.items():
        *sections, name = key.split(".")
        section = tree
        for each in sections:
            section = section.setdefault(each, {})
        section[name] = value
    return tree


def stated(value: Any, origin: Origin) -> Entry:
    """A recipe's tree as if a file had stated it; all of it comes from one place."""
    if isinstance(value, dict):
        value = {key: stated(inner, origin) for key, inner in value.items()}
    return Entry(value, origin, 0)


def data_of(loaded: Loaded, tokenizer: Tokenizer | None, path: Path) -> Data:
    """The data that the overrides name, with the folder's tokenizer."""
    data = loaded.recipe.data
    if tokenizer is not None and data.tokenizer == str(tokenizer_home(tokenizer, path.absolute())):
        data = data.model_copy(update={"tokenizer": str(tokenizer.path)})  # it is there when the folder has its name
    return data


def tokenizer_home(tokenizer: Tokenizer, run: Path) -> Path:
    """Where a run folder keeps the tokenizer that came with the weights, and its recipe names it."""
    return run / "tokenizer" / tokenizer.path.name


def keeping(tokenizer: Tokenizer | None) -> Callable[[Path], None]:
    """Puts the tokenizer, if there is one, where `tokenizer_home` says."""
    return lambda run: None if tokenizer is None else store_tokenizer(tokenizer, tokenizer_home(tokenizer, run))


def write_run(
    path: Path, loaded: Loaded, weights: OurWeights, data: Data, tokenizer: Tokenizer | None,
    keep: Callable[[Path], None] = lambda run: None,
) -> bool:
    """Make the run folder `path`, whole or not there; returns whether it has data.

    data: the section that names it, if it does. tokenizer: of the weights, held where no data is. keep: puts further
    files into the folder. Raises UserError where the name is taken, and for data that cannot be opened.
    """
    vocab_size = loaded.recipe.model.vocab_size
    if tokenizer is not None and tokenizer.vocab_size > vocab_size:
        raise UserError(f"{tokenizer.path}: {tokenizer.vocab_size} entries, and the model knows {vocab_size}; "
                        "allowed: a tokenizer of so many at most, or none")
    with new_run_folder(path) as run:
        named = data.corpus is not None or bool(data.blend)
        opened = open_data(data, vocab_size, loaded.recipe.training.seed) if named else None
        with plain_errors(path):
            write_first_checkpoint(run / "checkpoints", loaded.architecture, weights.shapes, weights.value)
        keep(run)
        if opened is not None:
            hold_data(opened, run)
        else:
            _hold_tokenizer(tokenizer, run)
        write_code_state(run / "code")
        write_recipe(run, loaded)
    return named


def store_tokenizer(tokenizer: Tokenizer, path: Path) -> None:
    """A copy, with the config that a tokenizer.json is read with."""
    path.parent.mkdir(exist_ok=True)
    write_atomically(path, tokenizer.path.read_bytes())
    config = tokenizer.path.with_name(CONFIG)
    if path.suffix == ".json" and config.is_file():
        write_atomically(path.with_name(CONFIG), config.read_bytes())


def _hold_tokenizer(tokenizer: Tokenizer | None, run: Path) -> None:
    """The tokenizer alone, and that it is this one, for a run whose data nobody named."""
    if tokenizer is not None:
        store_tokenizer(tokenizer, run / tokenizer.path.name)
    facts = {"tokenizer_sha256": None if tokenizer is None else tokenizer.fingerprint}
    write_atomically(run / FILE_NAME, json.dumps(facts, indent=1) + "\n")
