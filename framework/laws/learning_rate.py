"""The learning rate of the joint law's runs (arXiv 2502.05172 equation 8): peak rate by size and experts."""

from __future__ import annotations

import math
from dataclasses import dataclass

from framework.laws.law import Law
from framework.laws.values import Range, Values, Variable, require

NAME = "learning_rate"


@dataclass(frozen=True)
class Coefficients:
    """Of ln(rate) = constant + of_size ln N + of_experts ln E."""

    constant: float
    of_size: float
    of_experts: float


PUBLISHED = {
    "code": Coefficients(8.391640956234012, -0.8121798244457074, -0.25000000000000533),
    "equation_8": Coefficients(8.39, -0.81, -0.25),
}
"""The authors' code, and the paper's rounding of it."""


def learning_rate(num_params_active: float, num_experts: float = 1, of: Coefficients = PUBLISHED["code"]) -> float:
    """Peak learning rate, exp(8.39 - 0.81 ln N - 0.25 ln E), N the active parameters with both embeddings.

    The paper says without; its code counts them, and its grids of rates lie around what the law then gives.
    """
    return math.exp(of.constant + of.of_size * math.log(num_params_active) + of.of_experts * math.log(num_experts))


def predict(values: Values, coefficients: Coefficients | None = None) -> Values:
    """The learning rate."""
    num_params, num_experts = require(NAME, values, "num_params_active", "num_experts")
    rate = learning_rate(num_params, num_experts, coefficients or PUBLISHED["code"])
    return {"learning_rate": rate, "num_params_active": num_params, "num_experts": num_experts}


def _domain(values: Values) -> dict[str, Range]:
    return {"num_params_active": (79e6, 2.7e9), "num_experts": (1, 32)}


LAW = Law(
    name=NAME,
    title="peak learning rate of dense models and mixtures of experts (AdamW, trapezoid)",
    source="arXiv 2502.05172 equation 8; constants and what N counts from the authors' code",
    formula="LR = exp(8.39 - 0.81 ln N - 0.25 ln E)",
    definitions=("N: active parameters with embedding and unembedding",
                 "E: number of experts; fitted on 1 and 8, checked on 4 and 32"),
    variables=(Variable("num_params_active", "N, with embedding and unembedding"),
               Variable("num_experts", "E; 1 is dense", default=1, whole=True)),
    sets=PUBLISHED,
    predict=predict,
    domain=_domain,
)
