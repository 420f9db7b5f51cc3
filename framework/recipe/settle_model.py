"""The sizes of a whole model section, each stated once: the earlier of two statements is dropped."""

from __future__ import annotations

from collections.abc import Mapping

from framework.recipe.derive import reference_d_ff
from framework.recipe.schema import Model
from framework.recipe.settle import Replaced, settle_ffn, settle_moe
from framework.recipe.validate import join


def settle_model(model: Model, level: Mapping[str, int]) -> tuple[Model, Replaced]:
    """The model with the earlier statements dropped, and dotted key that lost -> dotted key that replaced it.

    level: how late each dotted key (`model.ffn.d_ff`) was stated.
    """
    ffn_level, moe_level = (
        {name: level.get(join("model", section, name), -1) for name in type(getattr(model, section)).model_fields}
        for section in ("ffn", "moe")
    )
    ffn, ffn_replaced = settle_ffn(model.ffn, ffn_level)
    model = model.model_copy(update={"ffn": ffn})
    moe, moe_replaced = settle_moe(model.moe, moe_level, reference_d_ff(model))
    replaced = {f"model.ffn.{lost}": f"model.ffn.{by}" for lost, by in ffn_replaced.items()}
    replaced |= {f"model.moe.{lost}": f"model.moe.{by}" for lost, by in moe_replaced.items()}
    return model.model_copy(update={"moe": moe}), replaced
