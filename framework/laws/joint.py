"""The joint law of dense models and mixtures of experts (arXiv 2502.05172): loss by size, tokens and experts."""

from __future__ import annotations

import math
from dataclasses import dataclass

from framework.laws.fit.forms import JOINT
from framework.laws.joint_shape import VOCABULARY, d_model_of, num_params_total
from framework.laws.law import Law
from framework.laws.power_sum import PowerSum
from framework.laws.values import Range, Values, Variable, require

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


def predict(values: Values, coefficients: Coefficients | None = None) -> Values:
    """The loss, with the total parameters, training FLOPs and tokens for each parameter."""
    num_params, tokens, num_experts = require(NAME, values, "num_params_active", "tokens", "num_experts")
    return point(of_experts(num_experts, coefficients), num_params, tokens, num_experts, values["vocab_size"])


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


def _domain(values: Values) -> dict[str, Range]:
    return {"num_params_active": (79e6, 2.7e9), "tokens": (0.5e9, 80e9), "num_experts": (1, 32),
            "tokens_per_param": (1, 400)}


def _optimum(values: Values, coefficients: Coefficients | None = None) -> Values:
    from framework.laws.joint_optimum import optimum

    return optimum(values, coefficients)


EXPERTS = Variable("num_experts", "E: experts of a layer, each of a whole FFN, of which a token uses one", whole=True)
VOCAB = Variable("vocab_size", "V, of the embedding and the unembedding", default=VOCABULARY, whole=True)

LAW = Law(
    name=NAME,
    title="dense models and mixtures of experts in one law, under limits of compute, memory and inference",
    source="arXiv 2502.05172 Tables 3 and 4, equation 7",
    formula="L = a E^^delta N^(alpha + gamma ln E^) + b E^^omega D^(beta + zeta ln E^) + c",
    definitions=("N: active parameters with embeddings, 2 d_model V + 13 blocks d_model^2",
                 "D: training tokens (FineWeb-Edu)",
                 "E: number of experts, top 1; 1 is dense. SwiGLU, d_ff = 3 d_model, d_model = 64 blocks",
                 "FLOPs: 6 N D, and 2 N for each token of inference"),
    variables=(Variable("num_params_active", "N, with embedding and unembedding"), Variable("tokens", "D"),
               EXPERTS, VOCAB),
    sets=PUBLISHED,
    predict=predict,
    domain=_domain,
    budget=(
        Variable("flops", "of training, and of inference where there is some"),
        Variable("num_experts", "E; the best of 1, 2, 4, ... 32 unless given", whole=True),
        Variable("memory_bytes", "that all parameters, and the cache where there is one, have to fit in"),
        Variable("inference_tokens", "to be generated or read later, out of the same FLOPs", minimum=0),
        Variable("kv_cache_tokens", "T, tokens whose keys and values are kept in that memory", minimum=0, default=0),
        Variable("bytes_per_parameter", "2 in bfloat16", minimum=0.125, default=2),
        Variable("bytes_per_cached_value", "2 in bfloat16", minimum=0.125, default=2),
        VOCAB,
    ),
    optimum=_optimum,
    form=JOINT,
)
