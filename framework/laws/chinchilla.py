"""The Chinchilla law (arXiv 2203.15556): loss of dense models by size and tokens."""

from __future__ import annotations

from dataclasses import dataclass

from framework.laws.fit.forms import CHINCHILLA
from framework.laws.joint_shape import d_model_of
from framework.laws.law import Law
from framework.laws.power_sum import PowerSum
from framework.laws.values import Range, Values, Variable, one_of, require

NAME = "chinchilla"
SIZES = ("num_params", "num_params_total", "num_params_active")


@dataclass(frozen=True)
class Coefficients:
    """Of L = E + A / N^alpha + B / D^beta, in lower case; e is the loss that nothing removes."""

    a: float
    alpha: float
    b: float
    beta: float
    e: float

    def power_sum(self) -> PowerSum:
        """The law itself."""
        return PowerSum(self.a, self.alpha, self.b, self.beta, self.e)


PUBLISHED = {"approach_3": Coefficients(406.4, 0.34, 410.7, 0.28, 1.69)}
"""Equation 10 of the paper, as several public descriptions quote it; not read from the paper itself."""


def predict(values: Values, coefficients: Coefficients | None = None) -> Values:
    """The loss and the training FLOPs."""
    tokens, = require(NAME, values, "tokens")
    _, num_params = one_of(NAME, values, SIZES)
    return _point((coefficients or PUBLISHED["approach_3"]).power_sum(), num_params, tokens)


def optimum(values: Values, coefficients: Coefficients | None = None) -> Values:
    """The size and tokens of least loss under 6 N D = flops."""
    flops, = require(NAME, values, "flops")
    power_sum = (coefficients or PUBLISHED["approach_3"]).power_sum()
    return _point(power_sum, *power_sum.optimum(flops))


def _point(power_sum: PowerSum, num_params: float, tokens: float) -> Values:
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


def _domain(values: Values) -> dict[str, Range]:
    return {"num_params": (70e6, 16e9), "tokens": (5e9, 500e9)}


LAW = Law(
    name=NAME,
    title="dense Transformers (Chinchilla, approach 3)",
    source="arXiv 2203.15556 equation 10, as quoted publicly; ranges from its abstract",
    formula="L = E + A / N^alpha + B / D^beta",
    definitions=("N: parameters of a dense model, embeddings included", "D: training tokens (MassiveText)",
                 "FLOPs: 6 N D"),
    variables=(*(Variable(name, "N, dense; any of the three names") for name in SIZES), Variable("tokens", "D")),
    sets=PUBLISHED,
    predict=predict,
    domain=_domain,
    budget=(Variable("flops", "of the whole training, 6 N D"),),
    optimum=optimum,
    form=CHINCHILLA,
)
