"""What expressions can name: the fields of a recipe, and what follows from them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from framework.errors import nearest
from framework.recipe import Loaded, Recipe, derived_value, sizes
from framework.recipe.errors import Origin, RecipeError
from framework.recipe.schema import Section
from framework.recipe.validate import schema_keys
from framework.sweep.numbers import Impossible

if TYPE_CHECKING:
    from framework.training.budget import Budget

SIZES = (
    "num_layers", "d_ff", "num_experts", "top_k", "d_expert", "granularity", "expansion_rate", "params_total",
    "params_active", "params_embedding", "params_router", "params_norm", "params_total_non_embedding",
    "params_active_non_embedding", "flops_per_token",
)
LENGTHS = ("tokens", "steps")


class Facts:
    """Looks up fields and sizes of one recipe, each size computed at most once."""

    def __init__(self, loaded: Loaded) -> None:
        self.loaded = loaded
        self._sizes: dict[str, Any] | None = None

    def __call__(self, name: str) -> object:
        """The value of a name that `require_names` lets pass. Raises Impossible where the recipe has none."""
        if name in LENGTHS:
            budget = budget_of(self.loaded)
            if budget is None:
                raise Impossible(f"{name} of a recipe without training.steps or training.tokens")
            return budget.num_steps if name == "steps" else budget.tokens_after(budget.num_steps)
        if name in SIZES:
            if self._sizes is None:
                self._sizes = sizes(self.loaded.architecture, self.loaded.recipe.data.seq_len)
            return self._sizes[name]
        return self._field(name)

    def _field(self, name: str) -> object:
        value: Any = self.loaded.recipe
        for part in name.split("."):
            if isinstance(value, Section):
                has_field = part in type(value).model_fields
                value = getattr(value, part) if has_field else (value.model_extra or {}).get(part)
            elif isinstance(value, Mapping):
                value = value.get(part)
            else:
                value = None
        return derived_value(self.loaded.architecture, name) if value is None else value


def budget_of(loaded: Loaded) -> Budget | None:
    """Steps and tokens of the recipe's run; None without a length."""
    from framework.training.budget import make_budget

    training = loaded.recipe.training
    return None if training.unit is None else make_budget(loaded.recipe.data, training)


def require_names(names: Iterable[str], what: str, origin: Origin, bare: Iterable[str] = SIZES + LENGTHS) -> None:
    """Raise RecipeError for a name that is neither a field nor one of `bare`."""
    known = [*schema_keys(Recipe), *bare]
    for name in names:
        if name in known or any(name.startswith(f"{key}.") for key in known if "." in key):
            continue
        raise RecipeError(what, f"{name} is no field and no size{nearest(name, known) or _tail(name, known)}; allowed: "
                          f"fields with their section, and {', '.join(bare)}", origin)


def _tail(name: str, known: Iterable[str]) -> str:
    """The field that ends in a name which lacks its section."""
    return next((f"; nearest: {key}" for key in known if key.endswith(f".{name}")), "")
