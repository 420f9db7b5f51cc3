"""The whole table over roles: what a recipe's parameters start with, how fast they learn, how they decay."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

import torch

from framework.model import LanguageModel, build_language_model
from framework.optim import endpoints
from framework.parametrization import Widths, is_decayed, learning_rate_factors, widths
from framework.parametrization.init import spread
from framework.parametrization.roles import Declaration, declarations
from framework.recipe import parameters

if TYPE_CHECKING:
    from framework.recipe import Loaded
    from framework.recipe.schema import Optim, Recipe


def role_table(loaded: Loaded) -> list[dict[str, Any]]:
    """One row for each kind of parameter, in the model's order; what differs in any column is another kind.

    role; shape; count, parameters of that kind; size and active_size, numbers in all of them; width_class, None without
    a base width; init, how they start, and init_std, the standard deviation before cutting, None for those whose init
    is no draw around 0; multiplier, on the product (embedding's and logits' own included); lr_start and lr_end, the
    peak and the final learning rate; weight_decay. Nothing is allocated.
    """
    recipe, rules = loaded.recipe, widths(loaded.recipe, loaded.architecture)
    with torch.device("meta"):
        model = build_language_model(loaded.architecture, rules)
    sizes = {parameter.name: (parameter.size, parameter.active_size) for parameter in parameters(loaded.architecture)}
    rows: dict[tuple, dict[str, Any]] = {}
    for name, module, local_name, declaration in declarations(model):
        shape = list(module.get_parameter(local_name).shape)
        row = {
            "role": str(declaration.role), "shape": shape,
            "width_class": str(rules.rules[name].width_class) if name in rules.rules else None,
            **_start(declaration, model, recipe, rules, name),
            "multiplier": getattr(module, "multiplier", 1.0) if local_name != "down" else 1.0,
            **_rates(declaration, recipe.optim, rules, name),
        }
        kind = rows.setdefault(tuple(map(str, row.values())), row | {"count": 0, "size": 0, "active_size": 0})
        for key, number in zip(("count", "size", "active_size"), (1, *sizes[name]), strict=True):
            kind[key] += number
    return list(rows.values())


def _start(
    declaration: Declaration, model: LanguageModel, recipe: Recipe, rules: Widths, name: str
) -> dict[str, Any]:
    init = recipe.parametrization.init
    if declaration.init is not None:
        described = inspect.getdoc(declaration.init).splitlines()[0].removeprefix("Fill with ").removesuffix(".")
        return {"init": described, "init_std": None}
    std, _ = spread(declaration, init, rules.rule(name), model.num_residual_branches)
    return {"init": init.rule, "init_std": std}


def _rates(declaration: Declaration, optim: Optim, rules: Widths, name: str) -> dict[str, float]:
    rule, (start, end) = rules.rule(name), learning_rate_factors(optim.relative_lr)[declaration.role]
    peak, final = endpoints(optim, start * rule.lr_factor, end * rule.lr_factor)
    decay = optim.weight_decay * rule.decay_factor if is_decayed(declaration.role) else 0.0
    return {"lr_start": peak, "lr_end": final, "weight_decay": decay}
