"""The joint law's formula, and its coefficients as published (arXiv 2502.05172, equation 7, Tables 3 and 4)."""

from __future__ import annotations

import math
from dataclasses import dataclass

from framework.laws.joint_shape import d_model_of, num_params_total
from framework.laws.power_sum import PowerSum
from framework.laws.values import Values

NAME = "joint"


@dataclass(frozen=True)
class Coefficients:
    """As Table 3 names and signs them: alpha, beta, gamma and zeta are exponents to be added."""

    a: float
    alpha: float
    delta: float
    gamma: float
    b: float
    beta: float
    omega: float
    zeta: float
    e_start: float
    e_max: float
    c: float

    def effective_experts(self, num_experts: float) -> float:
        """E^: 1/E^ = 1 / (E - 1 + 1 / (1/E_start - 1/E_max)) + 1/E_max, from E_start at E = 1 towards E_max."""
        saturating = num_experts - 1 + 1 / (1 / self.e_start - 1 / self.e_max)
        return 1 / (1 / saturating + 1 / self.e_max)

    def of_experts(self, num_experts: float) -> PowerSum:
        """The law at one E: m = a E^^delta, mu = -(alpha + gamma ln E^), n = b E^^omega, nu = -(beta + zeta ln E^)."""
        log = math.log(self.effective_experts(num_experts))
        return PowerSum(self.a * math.exp(self.delta * log), -(self.alpha + self.gamma * log),
                        self.b * math.exp(self.omega * log), -(self.beta + self.zeta * log), self.c)


PUBLISHED = {
    "table_3": Coefficients(35.91, -0.1889, -0.2285, 0.0098, 35.98, -0.1775, 0.5529, -0.0259, 2.0732, 290.4521, 1.3637),
}

TABLE_4 = {
    1: PowerSum(30.3640, 0.1817, 53.9838, 0.1965, 1.3637),
    2: PowerSum(27.7982, 0.1780, 66.8401, 0.2065, 1.3637),
    8: PowerSum(21.8330, 0.1676, 119.9126, 0.2338, 1.3637),
    32: PowerSum(16.5424, 0.1557, 234.6726, 0.2652, 1.3637),
}
"""The same law at one E each, with digits that Table 3's rounding loses (losses differ by up to 0.0012)."""


def of_experts(num_experts: float, coefficients: Coefficients | None = None) -> PowerSum:
    """The law at one E: of the coefficients, or as published, by Table 4 where it has that E and Table 3 elsewhere."""
    if coefficients is None and num_experts in TABLE_4:
        return TABLE_4[int(num_experts)]
    return (coefficients or PUBLISHED["table_3"]).of_experts(num_experts)


def point(power_sum: PowerSum, num_params: float, tokens: float, num_experts: float, vocab_size: float) -> Values:
    """What is told of a model and a training: the loss in nats a token, counts of parameters with embeddings."""
    d_model = d_model_of(num_params, vocab_size)
    return {
        "loss": power_sum.loss(num_params, tokens),
        "num_params_active": num_params,
        "num_params_total": num_params_total(d_model, num_experts, vocab_size),
        "tokens": tokens,
        "num_experts": num_experts,
        "tokens_per_param": tokens / num_params,
        "d_model": d_model,
        "flops": 6 * num_params * tokens,
    }
