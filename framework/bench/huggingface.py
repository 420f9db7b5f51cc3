"""The same model in Hugging Face transformers, built of the recipe through the tables of `framework.convert`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from framework.bench.peer import left_out
from framework.convert.choose import choose
from framework.convert.factors import factors
from framework.convert.fields import Facts
from framework.errors import UserError
from framework.model import build_language_model
from framework.packages import require_package
from framework.parametrization import initialize, widths

if TYPE_CHECKING:
    from framework.convert.target import Target
    from framework.recipe import Loaded

EXPERTS = "grouped_mm"
"""How transformers is to compute experts: one product for all of them, its fastest."""

def twin(loaded: Loaded) -> nn.Module:
    """The recipe's model as transformers has it, float32 on the CPU, with the weights that training begins with.

    Raises UserError naming what no model of theirs can express, or what of the training it would leave out.
    """
    if missing := left_out(loaded):
        raise UserError(f"--compare hf: a peer's steps have no {'; '.join(missing)}")
    try:
        target = choose(loaded)
    except UserError as error:
        raise UserError(f"--compare hf: {error}") from None
    require_package("--compare hf", "transformers")
    import transformers

    model_class = getattr(transformers, target.model_class)
    facts = Facts(loaded.architecture, loaded.recipe.data.seq_len, None, "float32")
    config = model_class.config_class.from_dict(target.write_config(facts))
    config.use_cache = False
    model, told = model_class.from_pretrained(
        None, config=config, state_dict=their_weights(loaded, target), dtype=torch.float32,
        output_loading_info=True, **({"experts_implementation": EXPERTS} if _has_experts(loaded) else {}),
    )
    wrong = sorted({*told["missing_keys"], *told["unexpected_keys"]})
    assert not wrong, f"{target.model_class} misses or ignores {wrong}"
    return model


@torch.no_grad()
def their_weights(loaded: Loaded, target: Target) -> dict[str, Tensor]:
    """The recipe's initial weights under the target's names, as a checkpoint of theirs would hold them."""
    architecture, recipe = loaded.architecture, loaded.recipe
    rules = widths(recipe, architecture)
    model = build_language_model(architecture, rules)
    initialize(model, recipe.parametrization.init, recipe.training.seed, rules)
    ours, folded = model.state_dict(), factors(loaded, target.holds_multipliers)
    found = {}
    for piece in target.pieces(architecture):
        tensors = [ours[name] * folded.get(name, 1.0) for name in piece.ours]
        theirs = piece.transform.to_theirs(tensors)
        found |= {name: tensor.contiguous() for name, tensor in zip(piece.theirs, theirs, strict=True)}
    return found


def loss(model: nn.Module, tokens_BS: Tensor, targets_BS: Tensor) -> Tensor:
    """The mean cross entropy of the targets, in nats a token."""
    return model(input_ids=tokens_BS, labels=targets_BS, shift_labels=targets_BS).loss


def _has_experts(loaded: Loaded) -> bool:
    return any(sublayer.kind == "moe" for sublayer in loaded.architecture.sublayers())
