"""The Chinchilla law (arXiv 2203.15556): loss of dense models by size and tokens."""

from __future__ import annotations

from dataclasses import dataclass

from framework.laws.dense import questions
from framework.laws.fit.forms import CHINCHILLA
from framework.laws.joint_shape import d_model_of
from framework.laws.law import Law
from framework.laws.power_sum import PowerSum
from framework.laws.values import Range, Values, Variable

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


predict, optimum = questions(NAME, SIZES, PUBLISHED["approach_3"], d_model_of)


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
