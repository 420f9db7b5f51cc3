"""The dense law beside that of fine-grained mixtures of experts (arXiv 2402.07871, Table 1)."""

from __future__ import annotations

from dataclasses import dataclass

from framework.laws.dense import questions
from framework.laws.fine_grained_shape import num_blocks
from framework.laws.fit.forms import DENSE
from framework.laws.law import Law
from framework.laws.power_sum import PowerSum
from framework.laws.values import Range, Values, Variable

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


predict, optimum = questions(NAME, SIZES, PUBLISHED["table_1"], lambda num_params: 64 * num_blocks(num_params))


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
