"""What a recipe must be so that a target can express it: named checks, each with what it says where it fails."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from framework.recipe.derive import section_of
from framework.recipe.errors import shorten

if TYPE_CHECKING:
    from framework.recipe import Architecture, Model
    from framework.recipe.architecture import Settings

NO_PART_OF_THE_FUNCTION = frozenset({
    "load_balance_weight", "load_balance_over", "z_loss_weight", "selection_bias_rate", "capacity_factor",
    "capacity_in_evaluation", "choice_group", "chunk_size", "expansion_rate", "granularity", "multiplier",
})
"""Fields that a trained model's output does not depend on (of capacity, see `evaluated_without_drops`)."""


@dataclass(frozen=True)
class Condition:
    """mismatch: a few words that begin with the recipe's field, or None where the recipe fits."""

    name: str
    mismatch: Callable[[Architecture], str | None]


def every(kind: str, **allowed: Any) -> tuple[Condition, ...]:
    """Each sublayer of a kind has these values; a tuple names several."""
    return tuple(_field(kind, name, values if isinstance(values, tuple) else (values,))
                 for name, values in allowed.items())


def the_model(**allowed: Any) -> tuple[Condition, ...]:
    """Fields of the model's section have these values."""

    def condition(name: str, value: Any) -> Condition:
        def mismatch(architecture: Architecture) -> str | None:
            given = getattr(architecture.model, name)
            return None if given == value else f"model.{name} is {shorten(given)} (allowed: {shorten(value)})"

        return Condition(name, mismatch)

    return tuple(condition(name, value) for name, value in allowed.items())


def alike(kind: str) -> tuple[Condition, ...]:
    """All sublayers of a kind have one width and one way of working."""

    def mismatch(architecture: Architecture) -> str | None:
        first, *others = _all(architecture, kind) or [None]
        for other in others:
            for name in type(first).model_fields:
                if name not in NO_PART_OF_THE_FUNCTION and getattr(first, name) != getattr(other, name):
                    return (f"{name} of {kind} sublayers is {shorten(getattr(first, name))} and "
                            f"{shorten(getattr(other, name))} (allowed: one value)")
        return None

    return (Condition(f"alike {kind}", mismatch),)


def some(kind: str) -> tuple[Condition, ...]:
    """At least one sublayer is of this kind."""

    def mismatch(architecture: Architecture) -> str | None:
        return None if _all(architecture, kind) else f"the pattern has no {kind} sublayer (allowed: one at least)"

    return (Condition(f"some {kind}", mismatch),)


def gates(*allowed: str) -> tuple[Condition, ...]:
    """How gates of experts are made, of `gates_of`'s words."""

    def mismatch(architecture: Architecture) -> str | None:
        for settings in _all(architecture, "moe"):
            if (given := gates_of(settings)) not in allowed:
                return f"gates of experts are: {given} (allowed: {' or '.join(allowed)})"
        return None

    return (Condition("gates", mismatch), *evaluated_without_drops())


NORMALISED, SOFTMAX, SIGMOID, CHOICE = (
    "softmax, normalised over the chosen", "softmax over all", "sigmoid", "experts choose tokens")


def gates_of(settings: Settings) -> str:
    """The function from logits to gates, however the recipe spells it; one chosen expert is normalised to 1."""
    if settings.router == "expert_choice":
        return CHOICE
    if settings.router == "sigmoid":
        return SIGMOID
    return NORMALISED if settings.router == "topk_softmax" or settings.normalize_top_k else SOFTMAX


def evaluated_without_drops() -> tuple[Condition, ...]:
    """Experts take all of their tokens where the model is used; none of the targets drops any."""

    def mismatch(architecture: Architecture) -> str | None:
        dropping = any(settings.capacity_in_evaluation and settings.capacity_factor is not None
                       for settings in _all(architecture, "moe"))
        return "model.moe.capacity_in_evaluation is true (allowed: false)" if dropping else None

    return (Condition("capacity", mismatch),)


def holds(name: str, text: str, test: Callable[[Model, Settings], bool], kind: str) -> tuple[Condition, ...]:
    """A relation between sizes in each sublayer of a kind, told by `text` where it does not hold."""

    def mismatch(architecture: Architecture) -> str | None:
        return None if all(test(architecture.model, each) for each in _all(architecture, kind)) else text

    return (Condition(name, mismatch),)


def _field(kind: str, name: str, allowed: tuple[Any, ...]) -> Condition:
    def mismatch(architecture: Architecture) -> str | None:
        for settings in _all(architecture, kind):
            if (given := getattr(settings, name)) not in allowed:
                words = " or ".join(map(shorten, allowed))
                return f"model.{section_of(kind)}.{name} is {shorten(given)} (allowed: {words})"
        return None

    return Condition(f"{kind}.{name}", mismatch)


def _all(architecture: Architecture, kind: str) -> list[Settings]:
    return [sublayer.settings for sublayer in architecture.sublayers() if sublayer.kind == kind]
