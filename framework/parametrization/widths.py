"""Maximal-update parametrization: what changes for each parameter as a model grows wider than its base.

The classes are those of Tensor Programs V (https://arxiv.org/abs/2203.03466), for experts and routers those of
https://arxiv.org/abs/2508.09752. They follow from shapes: a dim grows where the model's differs from the base model's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum

from framework.recipe.architecture import Architecture
from framework.recipe.base_model import base_architecture
from framework.recipe.parameters import Parameter, family_of, parameters
from framework.recipe.schema import Recipe


class WidthClass(StrEnum):
    """Which of a parameter's two sides grows with the model."""

    INPUT = "input"
    """What is summed over stays: embeddings, vectors, convolutions; expert_down where d_expert stays."""
    HIDDEN = "hidden"
    """Both sides grow: attention, feed-forward, experts, most of a state-space block."""
    OUTPUT = "output"
    """What is summed over grows, the result does not: unembedding and routers."""


@dataclass(frozen=True)
class WidthRule:
    """How one parameter differs from the same one at base width, `growth` = fan_in / base fan_in (Adam).

    Table 8 of 2203.03466:       input    hidden     output
      standard deviation         as base  / sqrt(g)  as base
      factor on the product      1        1          1 / g
      learning rate              1        1 / g      1

    growth: of the width that is summed over; the init rule sees fan_in / growth. std_factor: on that rule's standard
    deviation. multiplier: on the matrix's product. lr_factor: on the learning rate. decay_factor: on weight decay.
    eps_factor: on Adam's epsilon, which gradients are compared with; they all shrink as 1 / d_model (Appendix B.3).
    """

    width_class: WidthClass
    growth: float = 1.0
    std_factor: float = 1.0
    multiplier: float = 1.0
    lr_factor: float = 1.0
    decay_factor: float = 1.0
    eps_factor: float = 1.0


@dataclass(frozen=True)
class Widths:
    """The rules of a model that grew: by qualified name of the parameter, and factors on attention's q.k by letter.

    A parameter without a rule is as the standard parametrization has it.
    """

    rules: Mapping[str, WidthRule]
    attention: Mapping[str, float]

    def rule(self, name: str) -> WidthRule:
        """The rule of a parameter, neutral where it has none."""
        return self.rules.get(name, NEUTRAL)


NEUTRAL = WidthRule(WidthClass.INPUT)
STANDARD = Widths({}, {})
"""Every model as its own base: initial values by fan-in, one learning rate."""

VECTORS = frozenset({"embedding", "norm", "bias", "ssm_A", "ssm_D", "ssm_conv"})
"""Roles that act on coordinates one by one or are looked up, whatever their shape."""

MULTIPLIED = frozenset({"ssm_B", "ssm_C"})
"""Roles of output shape whose results multiply each other. Were both to vanish at the start as the width grows, each
would take the other's gradient with it: they start like hidden matrices. Updates are as large in either class."""


def widths(recipe: Recipe, architecture: Architecture) -> Widths:
    """The rules that a recipe's parametrization gives to the parameters of its model.

    standard: none. mup: all. simple_p: those of experts alone (the heuristic of 2508.09752); attention is standard.
    """
    settings, base = recipe.parametrization, base_architecture(architecture.model, recipe.parametrization)
    if base is None:
        return STANDARD
    growth, rules = architecture.model.d_model / base.model.d_model, {}
    if settings.kind != "standard":
        for row, base_row in zip(parameters(architecture), parameters(base), strict=True):
            if settings.kind == "mup" or family_of(row.role) == "expert":
                rules[row.name] = _rule(row, base_row, settings.scale_weight_decay)
    if settings.kind == "mup":
        rules |= _tied(growth) if architecture.model.tie_embeddings else {}
        rules = {name: replace(rule, eps_factor=1 / growth) for name, rule in rules.items()}
    inverse = settings.attention_scale == "inverse" or (settings.attention_scale, settings.kind) == ("auto", "mup")
    return Widths(rules, _attention(architecture, base) if inverse else {})


def _rule(row: Parameter, base: Parameter, scale_weight_decay: bool) -> WidthRule:
    if row.role in VECTORS:
        return NEUTRAL
    fan_out, growth = (size / base_size for size, base_size in zip(row.shape[-2:], base.shape[-2:], strict=True))
    # Of stacked matrices the results are as many as there are experts.
    if len(row.shape) == 3 and not row.role.endswith("_down"):
        fan_out *= row.shape[0] / base.shape[0]
    if growth == 1.0:
        return NEUTRAL
    if fan_out == 1.0 and row.name.endswith("experts.down"):
        # Its product is no module's output: the same thing without a factor (2203.03466, Table 3).
        return WidthRule(WidthClass.OUTPUT, growth, std_factor=1 / growth, lr_factor=1 / growth,
                         decay_factor=growth if scale_weight_decay else 1.0)
    if fan_out == 1.0 and row.role not in MULTIPLIED:
        return WidthRule(WidthClass.OUTPUT, growth, multiplier=1 / growth)
    return WidthRule(WidthClass.HIDDEN, growth, std_factor=growth**-0.5, lr_factor=1 / growth,
                     decay_factor=growth if scale_weight_decay else 1.0)


def _tied(growth: float) -> dict[str, WidthRule]:
    """A tied matrix is an embedding that the logits' product scales; the init rule sees its d_model."""
    return {
        "embedding.weight": WidthRule(WidthClass.INPUT, growth),
        "unembedding.weight": WidthRule(WidthClass.OUTPUT, growth, multiplier=1 / growth),
    }


def _attention(architecture: Architecture, base: Architecture) -> dict[str, float]:
    """q.k / head_dim instead of q.k / sqrt(head_dim), equal at base width (2203.03466, Definition 4.1)."""
    base_head_dim = {sub.letter: sub.settings.head_dim for sub in base.sublayers() if sub.kind == "attention"}
    return {sub.letter: (base_head_dim[sub.letter] / sub.settings.head_dim) ** 0.5
            for sub in architecture.sublayers() if sub.kind == "attention"}
