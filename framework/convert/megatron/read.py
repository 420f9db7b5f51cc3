"""A model of Megatron-Core as a run folder: the tables read backwards."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from framework.convert.imported import data_of, keeping, nested, stated, tokenizer_home, write_run
from framework.convert.megatron.folder import MegatronFolder
from framework.convert.megatron.shapes import fields_of, kind_of
from framework.convert.megatron.target import MegatronTarget, target
from framework.convert.our_weights import OurWeights
from framework.convert.same_model import require_same_model, require_standard
from framework.convert.tokenizer import find_tokenizer
from framework.errors import UserError
from framework.recipe import Origin, Variants
from framework.surgery.new_run import refuse_existing

if TYPE_CHECKING:
    from framework.data import Tokenizer

FROM_SHAPES = frozenset({
    "pattern", "d_model", "vocab_size", "tie_embeddings", "norm", "attention.head_dim", "attention.num_kv_heads",
    "attention.qk_norm", "attention.qkv_bias", "ffn.d_ff", "moe.num_experts", "moe.d_expert", "moe.num_shared_experts",
    "moe.shared_expert_router", "mamba.expand", "mamba.d_conv",
})
"""What arguments may tell too, and shapes tell better."""


def from_megatron(folder: Path, path: Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Make the run folder `path`: a recipe, and a checkpoint of step 0 from which `upmix train --resume` goes on.

    The model section is what the arguments in common.pt and the tensors' names and shapes say; where there are no
    arguments, what shapes do not tell comes from overrides (`model.attention.num_heads=8`), or is a recipe's default,
    and the report says so. Raises UserError for what no table reads, for a tensor that is missing, unexpected or of
    another shape, and for damaged files; nothing is left then.
    """
    refuse_existing(path)
    given = MegatronFolder(folder)
    tokenizer = find_tokenizer(folder)
    try:
        reads = target(kind_of(given.shapes), "te")
        fields = _fields(given, reads, overrides)
    except UserError as error:
        raise UserError(f"{given.path}: {error}") from None
    variants = _recipe(given, fields, path, tokenizer)
    loaded = variants.load(list(overrides))
    if wrong := reads.mismatches(loaded.architecture):
        raise UserError(f"{given.path}: {reads.model_class} is not what the recipe says: {'; '.join(wrong)}")
    weights = OurWeights(given, reads.pieces(loaded.architecture), loaded.architecture, "its recipe")
    if given.arguments is not None:
        require_same_model(variants.load([]), loaded, "common.pt")
    require_standard(loaded)
    has_data = write_run(path, loaded, weights, data_of(loaded, tokenizer, path), tokenizer, keeping(tokenizer))
    return {
        "source": str(given.path), "run": str(path), "step": 0, "model_class": reads.model_class,
        "num_tensors": len(weights.shapes), "pattern": loaded.recipe.model.pattern,
        "tokenizer": None if tokenizer is None else tokenizer.path.name, "has_data": has_data,
        "cautions": _cautions(given),
    }


def _fields(given: MegatronFolder, reads: MegatronTarget, overrides: Sequence[str]) -> dict[str, Any]:
    told = {} if given.arguments is None else reads.read_config(given.arguments)
    heads = _stated_value(overrides, "model.attention.num_heads") or told.get("attention.num_heads")
    shaped = fields_of(given.shapes, heads if isinstance(heads, int) and not isinstance(heads, bool) else None)
    fields = shaped | {name: value for name, value in told.items() if name not in FROM_SHAPES or name not in shaped}
    top_k = fields.get("moe.top_k") or _stated_value(overrides, "model.moe.top_k")
    if "moe.num_experts" in shaped and top_k is None:
        raise UserError("no arguments in common.pt, and no shape tells how many experts a token visits; allowed: state "
                        "model.moe.top_k=...")
    if "mamba.d_state" in shaped and (groups := _groups(fields, overrides)) > 1:
        fields |= {"mamba.num_groups": groups, "mamba.d_state": shaped["mamba.d_state"] // groups}
    return {name: value for name, value in fields.items() if "." not in name or _is_there(name, shaped)}


def _groups(fields: dict[str, Any], overrides: Sequence[str]) -> int:
    given = _stated_value(overrides, "model.mamba.num_groups") or fields.get("mamba.num_groups")
    return given if isinstance(given, int) else 1


def _stated_value(overrides: Sequence[str], key: str) -> int | None:
    """The number that an override states; what is no number is refused with the recipe."""
    stated = [text.partition("=")[2] for text in overrides if text.partition("=")[0] == key]
    return int(stated[-1]) if stated and stated[-1].isdecimal() else None


def _is_there(name: str, shaped: dict[str, Any]) -> bool:
    """Whether the model has sublayers that the field is of."""
    return any(other.startswith(f"{name.partition('.')[0]}.") for other in shaped)


def _recipe(given: MegatronFolder, fields: dict[str, Any], path: Path, tokenizer: Tokenizer | None) -> Variants:
    place, folder = str(given.path / "common.pt"), given.path.absolute()
    recipe: dict[str, Any] = {
        "description": f"{folder.name} of {folder.parent.name}, from Megatron-Core", "model": nested(fields)}
    if tokenizer is not None:
        recipe["data"] = {"tokenizer": str(tokenizer_home(tokenizer, path.absolute()))}
    return Variants(place, stated(recipe, Origin(place)), level=1)


def _cautions(given: MegatronFolder) -> list[str]:
    """What nobody told."""
    if given.arguments is not None:
        return []
    return ["common.pt holds no arguments: sizes are those of the shapes; the rest (norm_eps, rotary positions, gates, "
            "groups of Mamba-2, activations without a gate) is a recipe's default, unless an override states it"]
