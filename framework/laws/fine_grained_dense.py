"""The dense law beside that of fine-grained mixtures of experts (arXiv 2402.07871, Table 1)."""

from __future__ import annotations

from dataclasses import dataclass

from framework.laws.fit.forms import DENSE
from framework.laws.law import Law
from framework.laws.power_sum import PowerSum
from framework.laws.values import Range, Values, Variable, one_of, require

NAME = "fine_grained_dense"
SIZES = ("num_params_total", "num_params_active", "num_params")


@dataclass(frozen=True)
class Coefficients:
    """Of L = c + a / N^alpha + b / D^beta; c is that of the law of experts, fitted first."""

    a: float
    alpha: float
    b: float
    beta: float
    c: float

    def power_sum(self) -> PowerSum:
        """The law itself."""
        return PowerSum(self.a, self.alpha, self.b, self.beta, self.c)


PUBLISHED = {"table_1": Coefficients(16.3, 0.126, 26.7, 0.127, 0.472)}


def predict(values: Values, coefficients: Coefficients | None = None) -> Values:
    """The loss and the training FLOPs."""
    tokens, = require(NAME, values, "tokens")
    _, num_params = one_of(NAME, values, SIZES)
    return _point((coefficients or PUBLISHED["table_1"]).power_sum(), num_params, tokens)


def optimum(values: Values, coefficients: Coefficients | None = None) -> Values:
    """The size and tokens of least loss for some FLOPs."""
    flops, = require(NAME, values, "flops")
    power_sum = (coefficients or PUBLISHED["table_1"]).power_sum()
    return _point(power_sum, *power_sum.optimum(flops))


def _point(power_sum: PowerSum, num_params: float, tokens: float) -> Values:
    return {
        "loss": power_sum.loss(num_params, tokens),
        "num_params_active": num_params,
        "num_params_total": num_params,
        "tokens": tokens,
        "num_experts": 1,
        "d_model": 64 * (num_params / (12 * 64**2)) ** (1 / 3),
        "flops": 6 * num_params * tokens,
    }


def _domain(values: Values) -> dict[str, Range]:
    return {"num_params_total": (3.1e6, 85e6), "tokens": (16e9, 66e9)}


LAW = Law(
    name=NAME,
    title="dense Transformers, the baseline of the fine-grained law",
    source="arXiv 2402.07871 Table 1; L0 from the authors' code",
    formula="L = c + a / N^alpha + b / D^beta",
    definitions=("N: parameters without embeddings, 12 d_model^2 blocks", "D: training tokens (C4)", "FLOPs: 6 N D"),
    variables=(*(Variable(name, "N, without embeddings; any of the three names") for name in SIZES),
               Variable("tokens", "D")),
    sets=PUBLISHED,
    predict=predict,
    domain=_domain,
    budget=(Variable("flops", "of the whole training, 6 N D"),),
    optimum=optimum,
    form=DENSE,
)
