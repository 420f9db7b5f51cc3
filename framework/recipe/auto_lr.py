"""`optim.lr: auto`: the peak rate that the joint scaling laws' authors fitted to models' sizes."""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from typing import Any

from framework.recipe.architecture import Architecture, used_d_ff
from framework.recipe.errors import RecipeError
from framework.recipe.schema import Parametrization
from framework.recipe.sizes import sizes

KEY = "optim.lr"
AUTO = "auto"


def without_auto(values: Mapping[str, Any]) -> tuple[dict[str, Any], bool]:
    """The plain values of a recipe without `optim.lr: auto`, as the schema has numbers alone, and whether it was there.
    """
    optim = values.get("optim")
    if not isinstance(optim, dict) or optim.get("lr") != AUTO:
        return dict(values), False
    return {**values, "optim": {name: value for name, value in optim.items() if name != "lr"}}, True


def law_rate(architecture: Architecture, settings: Parametrization) -> tuple[float, str]:
    """The peak rate by equation 8 of https://arxiv.org/abs/2502.05172, and in words what it was computed from.

    N are the active parameters with embeddings, as the authors' code counts them (the paper says without), and E the
    experts' parameters of a layer over those of the dense FFN, shared experts left out; 1 without experts. Raises
    RecipeError where layers differ in E, and where a width parametrization changes the rate with the size already.
    """
    if settings.kind != "standard":
        raise RecipeError((KEY, "parametrization.kind"), f"given auto with kind {settings.kind}, whose rates follow "
                          "the width already; allowed: the rate at base width as a number, or kind standard")
    from framework.laws.learning_rate import learning_rate

    rate = expansion_rate(architecture)
    num_params = sizes(architecture, seq_len=1)["params_active"]
    return learning_rate(num_params, float(rate)), f"auto: joint law, N {num_params:,}, E {float(rate):g}"


def expansion_rate(architecture: Architecture) -> Fraction:
    """E of every layer with experts or a dense FFN, which counts as 1; 1 without such layers. Raises RecipeError."""
    by_letter = {}
    for sublayer in architecture.sublayers():
        if sublayer.kind == "moe":
            settings = sublayer.settings
            by_letter[sublayer.letter] = Fraction(settings.num_experts * settings.d_expert, used_d_ff(architecture))
        elif sublayer.kind == "ffn":
            by_letter[sublayer.letter] = Fraction(1)
    if len(set(by_letter.values())) > 1:
        rates = ", ".join(f"{float(rate):g} of {letter!r}" for letter, rate in by_letter.items())
        raise RecipeError(KEY, "given auto, but the law knows one expansion rate and the layers have several "
                          f"({rates}); allowed: a number")
    return next(iter(by_letter.values()), Fraction(1))
