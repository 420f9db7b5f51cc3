"""A model of transformers as a run folder: the tables read backwards."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from framework.convert.choose import find
from framework.convert.first_checkpoint import write_first_checkpoint
from framework.convert.hf_folder import RECOMPUTED, HuggingFaceFolder
from framework.convert.table import Piece, our_tensors
from framework.convert.tokenizer import CONFIG, find_tokenizer
from framework.convert.transforms import their_shapes
from framework.data import open_data
from framework.errors import UserError
from framework.files import write_atomically
from framework.recipe import Loaded, Origin, Variants
from framework.recipe.yaml_reader import Entry
from framework.surgery.new_run import new_run_folder, refuse_existing
from framework.training.code_state import write_code_state
from framework.training.data_state import FILE_NAME, hold_data
from framework.training.run_folder import write_recipe

if TYPE_CHECKING:
    from framework.convert.target import Target
    from framework.data import Tokenizer

GIVEN_NAMES = 3
"""Tensors of a kind that a message names."""


def from_hf(folder: Path, path: Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Make the run folder `path`: a recipe, and a checkpoint of step 0 from which `upmix train --resume` goes on.

    overrides: of the recipe, as `data.corpus=...`; its model section is what config.json says. Returns the report.
    Raises UserError for what no table reads, for a tensor that is missing, unexpected or of another shape, and for
    damaged files; nothing is left then.
    """
    refuse_existing(path)
    given = HuggingFaceFolder(folder)
    target = find(given.config.get("model_type"))
    tokenizer = find_tokenizer(folder)
    loaded = _recipe(given, target, path, tokenizer, overrides)
    _require_plausible(given, target, loaded)
    if wrong := target.mismatches(loaded.architecture):
        raise UserError(f"{folder}: a {target.model_type} is not what the recipe says: {'; '.join(wrong)}")
    weights = OurWeights(given, target, loaded)
    with new_run_folder(path) as run:
        data = _open_data(loaded, tokenizer, path)
        write_first_checkpoint(run / "checkpoints", loaded.architecture, weights.shapes, weights.value)
        if tokenizer is not None:
            _store(tokenizer, _home(tokenizer, run))
        if data is not None:
            hold_data(data, run)
        else:
            _hold_tokenizer(tokenizer, run)
        write_code_state(run / "code")
        write_recipe(run, loaded)
    return {
        "source": str(folder), "run": str(path), "step": 0, "model_type": target.model_type,
        "num_tensors": len(weights.shapes), "pattern": loaded.recipe.model.pattern,
        "tokenizer": None if tokenizer is None else tokenizer.path.name, "has_data": data is not None,
    }


def _recipe(
    given: HuggingFaceFolder, target: Target, path: Path, tokenizer: Tokenizer | None, overrides: Sequence[str]
) -> Loaded:
    fields = target.read_config(given.config)
    for hint in target.from_weights:
        names = [name for name in given.shapes if name.endswith(f".{hint.theirs}")]
        if names:
            fields[hint.path] = hint.zero if all(not given.tensor(name).any() for name in names) else hint.other
    recipe: dict[str, Any] = {
        "description": f"{given.path.absolute().name}, a {target.model_type}", "model": _nested(fields)}
    if tokenizer is not None:
        recipe["data"] = {"tokenizer": str(_home(tokenizer, path.absolute()))}
    place = str(given.path / "config.json")
    return Variants(place, _stated(recipe, Origin(place)), level=1).load(list(overrides))


def _stated(value: Any, origin: Origin) -> Entry:
    """A recipe's tree as if a file had stated it; all of it comes from one place."""
    if isinstance(value, dict):
        value = {key: _stated(inner, origin) for key, inner in value.items()}
    return Entry(value, origin, 0)


def _require_plausible(given: HuggingFaceFolder, target: Target, loaded: Loaded) -> None:
    """Before names are spelled out: what config.json counts cannot be more than there are tensors."""
    counts = {"sublayers": len(loaded.architecture.layers)}
    if target.names_experts:
        counts["experts"] = max([sublayer.settings.num_experts for sublayer in loaded.architecture.sublayers()
                                 if sublayer.kind == "moe"], default=0)
    for what, count in counts.items():
        if count > len(given.shapes):
            raise UserError(f"{given.path}: config.json says {count} {what}; there are {len(given.shapes)} tensors in "
                            "all; allowed: every tensor that config.json needs")


def _nested(fields: dict[str, Any]) -> dict[str, Any]:
    """Dotted keys as sections."""
    tree: dict[str, Any] = {}
    for key, value in fields.items():
        *sections, name = key.split(".")
        section = tree
        for each in sections:
            section = section.setdefault(each, {})
        section[name] = value
    return tree


@dataclass(frozen=True)
class _Made:
    piece: Piece
    index: int


class OurWeights:
    """What a model's tensors are made of, each read when it is asked for; nothing is kept but the last piece's.

    Raises UserError that names the tensor where one of theirs is missing, unexpected or of another shape.
    """

    def __init__(self, given: HuggingFaceFolder, target: Target, loaded: Loaded) -> None:
        self.given = given
        found = target.pieces(loaded.architecture)
        sizes = our_tensors(loaded.architecture)
        self.made = {name: _Made(piece, index) for piece in found for index, name in enumerate(piece.ours)}
        self.shapes = {name: sizes[name] for name in self.made}
        try:
            shapes = [their_shapes(piece.transform, [sizes[name] for name in piece.ours]) for piece in found]
        except ValueError as error:
            raise UserError(f"{given.path / 'config.json'}: {error}") from None
        _compare(given, {name: shape for piece, theirs in zip(found, shapes, strict=True)
                         for name, shape in zip(piece.theirs, theirs, strict=True)})
        for piece in found:
            if not piece.ours:
                self._read(piece)
        self._last: tuple[Piece, list[Tensor]] | None = None

    def value(self, name: str) -> Tensor:
        """One tensor of ours, float32."""
        made = self.made[name]
        if self._last is None or self._last[0] is not made.piece:
            self._last = None  # before the next is read
            self._last = made.piece, self._read(made.piece)
        return self._last[1][made.index]

    def _read(self, piece: Piece) -> list[Tensor]:
        shapes = [self.shapes[name] for name in piece.ours]
        try:
            return piece.transform.to_ours([self.given.tensor(name) for name in piece.theirs], shapes)
        except ValueError as error:
            raise UserError(f"{self.given.file_of(piece.theirs[0])}: {piece.theirs[0]} {error}") from None


def _compare(given: HuggingFaceFolder, wanted: dict[str, tuple[int, ...]]) -> None:
    """Every tensor that the table names, of its shape, and no other."""
    if missing := [name for name in wanted if name not in given.shapes]:
        raise UserError(f"{given.file_of('')}: {_told(missing)} missing; allowed: every tensor that config.json needs")
    unexpected = [name for name in given.shapes if name not in wanted and not name.endswith(RECOMPUTED)]
    if unexpected:
        raise UserError(f"{given.file_of(unexpected[0])}: {_told(unexpected)} unexpected; allowed: the tensors that "
                        "config.json needs, no more")
    for name, shape in wanted.items():
        if given.shapes[name] != shape:
            raise UserError(f"{given.file_of(name)}: {name} has shape {list(given.shapes[name])}; allowed: "
                            f"{list(shape)}, which config.json says")


def _told(names: list[str]) -> str:
    more = f" and {len(names) - GIVEN_NAMES} more" if len(names) > GIVEN_NAMES else ""
    return f"{', '.join(names[:GIVEN_NAMES])}{more} {'is' if len(names) == 1 else 'are'}"


def _open_data(loaded: Loaded, tokenizer: Tokenizer | None, path: Path) -> Any:
    """The data that the overrides name, with the folder's tokenizer; None where they name none."""
    recipe = loaded.recipe
    if recipe.data.corpus is None and not recipe.data.blend:
        return None
    data = recipe.data
    if tokenizer is not None and data.tokenizer == str(_home(tokenizer, path.absolute())):
        data = data.model_copy(update={"tokenizer": str(tokenizer.path)})  # it is there when the folder has its name
    return open_data(data, recipe.model.vocab_size, recipe.training.seed)


def _home(tokenizer: Tokenizer, run: Path) -> Path:
    """Where a run folder keeps the tokenizer that came with the weights, and its recipe names it."""
    return run / "tokenizer" / tokenizer.path.name


def _hold_tokenizer(tokenizer: Tokenizer | None, run: Path) -> None:
    """The tokenizer alone, and that it is this one, for a run whose data nobody named."""
    if tokenizer is not None:
        _store(tokenizer, run / tokenizer.path.name)
    facts = {"tokenizer_sha256": None if tokenizer is None else tokenizer.fingerprint}
    write_atomically(run / FILE_NAME, json.dumps(facts, indent=1) + "\n")


def _store(tokenizer: Tokenizer, path: Path) -> None:
    """A copy, with the config that a tokenizer.json is read with."""
    path.parent.mkdir(exist_ok=True)
    write_atomically(path, tokenizer.path.read_bytes())
    config = tokenizer.path.with_name(CONFIG)
    if path.suffix == ".json" and config.is_file():
        write_atomically(path.with_name(CONFIG), config.read_bytes())
