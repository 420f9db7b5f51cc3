"""A recipe of what names and shapes of weights tell, what their code fixes, and what the user states beside them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from framework.convert.fields import settings_of
from framework.convert.imported import nested, stated
from framework.convert.layers import KIND_LETTERS, spell
from framework.convert.our_weights import Given
from framework.convert.research.layout import Layout, Parts, Shapes
from framework.convert.same_model import require_standard
from framework.errors import UserError
from framework.recipe import Loaded, Origin, Variants
from framework.recipe.derive import section_of
from framework.recipe.errors import shorten

NEUTRAL = {"multipliers.embedding": 1.0, "multipliers.attention": None, "multipliers.residual": 1.0,
           "multipliers.logits": 1.0}
"""Factors that neither code has."""


def read_recipe(layout: Layout, given: Given, parts: Parts, tied: bool, overrides: Sequence[str]) -> Loaded:
    """The recipe of weights, with the overrides over it.

    tied: the matrix at the end is that of the beginning. Raises UserError that names each field that nobody told, and
    for an override that contradicts the weights or the code that trained them.
    """
    told = _told(layout, given.shapes, parts, tied, _stated_heads(overrides))
    usual = {f"{section}.{name}": value for section, values in layout.usual.items() for name, value in values.items()}
    sections = {section_of(block.kind) for block in parts.blocks}
    fixed = {f"{section}.{name}": value for section, values in layout.fixed.items() for name, value in values.items()}
    fields = {key: value for key, value in {**usual, **fixed, **told}.items()
              if key.partition(".")[0] in sections or "." not in key}
    if layout.layernorm_eps is not None and "layernorm" in (told.get("norm"), _stated_text(overrides, "model.norm")):
        fields["norm_eps"] = layout.layernorm_eps
    _require_stated(layout, fields, sections, overrides)
    place = str(given.path)
    recipe = {"description": f"{given.path.absolute().name}, a model of {layout.name}", "model": nested(fields)}
    loaded = Variants(place, stated(recipe, Origin(place)), level=1).load(list(overrides))
    _require_same(loaded, {**fixed, **told, **NEUTRAL}, given)
    require_standard(loaded)
    return loaded


def _told(layout: Layout, shapes: Shapes, parts: Parts, tied: bool, heads: int | None) -> dict[str, Any]:
    """Dotted fields of the model section that names and shapes tell."""
    letters = [KIND_LETTERS[block.kind] for block in parts.blocks]
    try:
        vocab_size, d_model = shapes[parts.embedding]
        fields = {"pattern": spell(letters), "d_model": d_model, "vocab_size": vocab_size, "tie_embeddings": tied}
        for kind, sizes in layout.sizes.items():
            block = next((block for block in parts.blocks if block.kind == kind), None)
            if block is not None:
                fields |= sizes(block.own(shapes), heads)
    except (KeyError, ValueError, IndexError, TypeError, ZeroDivisionError) as error:
        raise UserError(f"sizes cannot be told from its tensors ({type(error).__name__}: {error}); allowed: a whole "
                        f"model of {layout.name}") from None
    if f"{parts.last_norm}g" in shapes:
        # The class's own; it subtracts no mean.
        return fields | {"norm": "rmsnorm", "norm_eps": 1e-5}
    return fields | {"norm": "layernorm"} if f"{parts.last_norm}bias" in shapes else fields


def _stated_heads(overrides: Sequence[str]) -> int | None:
    """The number of heads that an override states; what is no number is refused with the recipe."""
    text = _stated_text(overrides, "model.attention.num_heads") or ""
    return int(text) if text.isascii() and text.isdecimal() and len(text) < 10 else None


def _stated_text(overrides: Sequence[str], key: str) -> str | None:
    return next((text.partition("=")[2] for text in reversed(overrides) if text.partition("=")[0] == key), None)


def _require_stated(
    layout: Layout, fields: Mapping[str, Any], sections: set[str], overrides: Sequence[str]
) -> None:
    asked = {"norm": "rmsnorm, or layernorm that was built without biases"} if "norm" not in fields else {}
    asked["norm_eps"] = "1e-5 of a LayerNorm, 1.1920929e-07 of an RMSNorm of PyTorch, unless another was given"
    asked |= {f"{section}.{name}": meaning for section, names in layout.asked.items() if section in sections
              for name, meaning in names.items()}
    keys = {text.partition("=")[0] for text in overrides}
    missing = {key: meaning for key, meaning in asked.items() if key not in fields
               and not any(each == f"model.{key}" or each.startswith(f"model.{key}.") for each in keys)}
    if missing:
        told = ", ".join(f"model.{key}=... ({meaning})" for key, meaning in missing.items())
        raise UserError(f"weights do not tell {told}; allowed: each stated after the run's name")


def _require_same(loaded: Loaded, known: Mapping[str, Any], given: Given) -> None:
    """An override may say what weights do not; it may not contradict them."""
    for key, value in known.items():
        section, _, name = key.rpartition(".")
        model = loaded.recipe.model
        owner = model if not section else model.multipliers if section == "multipliers" else settings_of(
            loaded.architecture, section)
        if owner is not None and (found := getattr(owner, name)) != value:
            raise UserError(f"model.{key} is {shorten(found)}; allowed: {shorten(value)}, as in the code and the "
                            f"tensors of {given.path.name}")
