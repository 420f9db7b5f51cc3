"""What laws of dense models of two powers have in common: 6 N D training FLOPs, and how they answer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from framework.laws.power_sum import PowerSum
from framework.laws.values import Values, one_of, require

Question = Callable[[Values, Any], Values]


def questions(
    name: str, sizes: tuple[str, ...], published: Any, d_model_of: Callable[[float], float]
) -> tuple[Question, Question]:
    """`predict` and `optimum` of a law whose coefficients make a `power_sum()`.

    sizes: names under which N may be given. published: coefficients where none are given. d_model_of: the width of the
    law's model of N parameters. The optimum is that of least loss under 6 N D = flops.
    """

    def law(coefficients: Any) -> PowerSum:
        return (coefficients or published).power_sum()

    def predict(values: Values, coefficients: Any = None) -> Values:
        tokens, = require(name, values, "tokens")
        return point(law(coefficients), one_of(name, values, sizes)[1], tokens)

    def optimum(values: Values, coefficients: Any = None) -> Values:
        flops, = require(name, values, "flops")
        return point(law(coefficients), *law(coefficients).optimum(flops))

    def point(power_sum: PowerSum, num_params: float, tokens: float) -> Values:
        return {
            "loss": power_sum.loss(num_params, tokens),
            "num_params": num_params,
            "num_params_active": num_params,
            "num_params_total": num_params,
            "tokens": tokens,
            "num_experts": 1,
            "d_model": d_model_of(num_params),
            "flops": 6 * num_params * tokens,
        }

    return predict, optimum
