"""A model of transformers as a run folder: the tables read backwards."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from framework.convert.architectures import TARGETS
from framework.convert.choose import find
from framework.convert.hf_folder import RECOMPUTED, HuggingFaceFolder
from framework.convert.imported import data_of, keeping, nested, stated, tokenizer_home, write_run
from framework.convert.our_weights import OurWeights
from framework.convert.same_model import require_same_model, require_standard
from framework.convert.table import Row
from framework.convert.tokenizer import find_tokenizer
from framework.errors import UserError
from framework.recipe import Loaded, Origin, Variants
from framework.surgery.new_run import refuse_existing

if TYPE_CHECKING:
    from framework.convert.target import Target
    from framework.data import Tokenizer


def from_hf(folder: Path, path: Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Make the run folder `path`: a recipe, and a checkpoint of step 0 from which `upmix train --resume` goes on.

    overrides: of the recipe, as `data.corpus=...`; its model section is what config.json says. Returns the report.
    Raises UserError for what no table reads, for a tensor that is missing, unexpected or of another shape, and for
    damaged files; nothing is left then.
    """
    refuse_existing(path)
    given = HuggingFaceFolder(folder)
    place = folder / "config.json"
    if "model_type" not in given.config:
        raise UserError(f"{place}: model_type is missing; allowed: {', '.join(TARGETS)}")
    target = find(given.config["model_type"], f"{place}: model_type")
    tokenizer = find_tokenizer(folder)
    variants = _recipe(given, target, path, tokenizer)
    loaded = variants.load(list(overrides))
    _require_plausible(given, target, loaded)
    if wrong := target.mismatches(loaded.architecture):
        raise UserError(f"{folder}: a {target.model_type} is not what the recipe says: {'; '.join(wrong)}")
    extra = (*RECOMPUTED, *_repeated_unembedding(given, target, loaded))
    weights = OurWeights(given, target.pieces(loaded.architecture), loaded.architecture, "config.json", extra)
    require_same_model(variants.load([]), loaded, "config.json")
    require_standard(loaded)
    has_data = write_run(path, loaded, weights, data_of(loaded, tokenizer, path), tokenizer, keeping(tokenizer))
    return {
        "source": str(folder), "run": str(path), "step": 0, "model_type": target.model_type,
        "num_tensors": len(weights.shapes), "pattern": loaded.recipe.model.pattern,
        "tokenizer": None if tokenizer is None else tokenizer.path.name, "has_data": has_data,
    }


def _recipe(given: HuggingFaceFolder, target: Target, path: Path, tokenizer: Tokenizer | None) -> Variants:
    fields = target.read_config(given.config, str(given.path / "config.json"))
    for hint in target.from_weights:
        names = [name for name in given.shapes if name.endswith(f".{hint.theirs}")]
        if names:
            fields[hint.path] = hint.zero if all(not given.tensor(name).any() for name in names) else hint.other
    recipe: dict[str, Any] = {
        "description": f"{given.path.absolute().name}, a {target.model_type}", "model": nested(fields)}
    if tokenizer is not None:
        recipe["data"] = {"tokenizer": str(tokenizer_home(tokenizer, path.absolute()))}
    place = str(given.path / "config.json")
    return Variants(place, stated(recipe, Origin(place)), level=1)


def _repeated_unembedding(given: HuggingFaceFolder, target: Target, loaded: Loaded) -> list[str]:
    """The name of an unembedding that a file holds beside the embedding that it is tied to, and that repeats it."""
    names = {entry.ours: entry.theirs for entry in target.tensors["model"] if isinstance(entry, Row)}
    embedding, unembedding = names[("embedding.weight",)], names[("unembedding.weight",)]
    if not loaded.recipe.model.tie_embeddings or not {embedding, unembedding} <= given.shapes.keys():
        return []
    if given.shapes[embedding] != given.shapes[unembedding] or not given.tensor(embedding).equal(
            given.tensor(unembedding)):
        raise UserError(f"{given.file_of(unembedding)}: {unembedding} is not {embedding}, to which config.json ties "
                        "it; allowed: the same numbers, or \"tie_word_embeddings\": false")
    return [unembedding]


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
