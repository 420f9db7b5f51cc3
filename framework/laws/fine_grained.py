"""The law of fine-grained mixtures of experts (arXiv 2402.07871): loss by size, tokens and granularity."""

from __future__ import annotations

import math
from dataclasses import dataclass

from framework.errors import UserError
from framework.laws.fine_grained_shape import FFN_FLOPS, flops_per_token, num_blocks, total_of_active
from framework.laws.fit.forms import FINE_GRAINED
from framework.laws.law import Law
from framework.laws.search import lowest
from framework.laws.values import Range, Values, Variable, one_of, require

NAME = "fine_grained"
GRANULARITIES = tuple(float(2**power) for power in range(9))


@dataclass(frozen=True)
class Coefficients:
    """Equation 9. L0 is 0.472, as the authors' code has it where Table 1 prints 0.47."""

    a: float
    alpha: float
    b: float
    beta: float
    g: float
    gamma: float
    c: float
    expansion_rate: float


PUBLISHED = {
    "table_1": Coefficients(18.1, 0.115, 30.8, 0.147, 2.1, 0.58, 0.472, 64),
    "table_5": Coefficients(17.6, 0.114, 26.7, 0.140, 2.07, 0.570, 0.472, 64),
    "table_8": Coefficients(19.64, 0.124, 57.07, 0.169, 1.18, 0.986, 0.472, 16),
}
"""Of E = 64, of E = 64 without the best fifth of the runs, of E = 16."""


def loss(num_params_total: float, tokens: float, granularity: float, coefficients: Coefficients) -> float:
    """L(N, D, G) = c + (g / G^gamma + a) / N^alpha + b / D^beta, in nats a token (equation 9)."""
    of = coefficients
    of_size = (of.g / granularity**of.gamma + of.a) / num_params_total**of.alpha
    return of.c + of_size + of.b / tokens**of.beta


def predict(values: Values, coefficients: Coefficients | None = None) -> Values:
    """The loss, with both counts of parameters and the training FLOPs."""
    tokens, granularity = require(NAME, values, "tokens", "granularity")
    of = _of_rate(values, coefficients)
    name, size = one_of(NAME, values, ("num_params_total", "num_params_active"))
    active = size if name == "num_params_active" else size / total_of_active(1.0, of.expansion_rate)
    return _point(active, tokens, granularity, of)


def optimum(values: Values, coefficients: Coefficients | None = None) -> Values:
    """The size, tokens and granularity (a power of two up to 256, or the one given) of least loss for some FLOPs."""
    flops, = require(NAME, values, "flops")
    of = _of_rate(values, coefficients)
    allowed = [values["granularity"]] if "granularity" in values else GRANULARITIES
    return min((_best_size(flops, granularity, of) for granularity in allowed), key=lambda point: point["loss"])


def _of_rate(values: Values, coefficients: Coefficients | None) -> Coefficients:
    """Those given, or the fit to all runs of the expansion rate. Raises UserError where the rate is of neither."""
    of = coefficients or PUBLISHED["table_8" if values.get("expansion_rate") == 16 else "table_1"]
    if values.get("expansion_rate", of.expansion_rate) != of.expansion_rate:
        allowed = f"that of the coefficients, {of.expansion_rate:g}" if coefficients else "64 or 16, as published"
        raise UserError(f"{NAME}: expansion_rate={values['expansion_rate']:g}; allowed: {allowed}")
    return of


def _best_size(flops: float, granularity: float, of: Coefficients) -> Values:
    def point(active: float) -> Values:
        return _point(active, flops / flops_per_token(active, granularity, of.expansion_rate), granularity, of)

    def log_size_of_one_token() -> float:
        return math.log(flops / FFN_FLOPS)

    return point(math.exp(lowest(lambda size: point(math.exp(size))["loss"], math.log(12), log_size_of_one_token())))


def _point(active: float, tokens: float, granularity: float, of: Coefficients) -> Values:
    total = total_of_active(active, of.expansion_rate)
    return {
        "loss": loss(total, tokens, granularity, of),
        "num_params_active": active,
        "num_params_total": total,
        "tokens": tokens,
        "granularity": granularity,
        "expansion_rate": of.expansion_rate,
        "d_model": 64 * num_blocks(active),
        "flops": flops_per_token(active, granularity, of.expansion_rate) * tokens,
    }


def _domain(values: Values) -> dict[str, Range]:
    at_64 = values.get("expansion_rate", 64) == 64
    return {"num_params_active": (3.1e6, 85e6) if at_64 else (3.1e6, 49.2e6), "granularity": (1, 16),
            "tokens": (16e9, 130e9) if at_64 else (8e9, 66e9)}


SIZE = (
    Variable("num_params_total", "N, without embeddings, routers and norms: d_model^2 (8 E + 4) blocks"),
    Variable("num_params_active", "of them those that a token uses: 12 d_model^2 blocks"),
)
GRANULARITY = Variable("granularity", "G = d_ff / d_expert, d_ff = 4 d_model; a token goes to G experts of E G")
RATE = Variable("expansion_rate", "E: parameters of the MoE layer / those of the FFN; 64 unless given")

LAW = Law(
    name=NAME,
    title="fine-grained mixtures of experts: every FFN has E G experts, of which a token uses G",
    source="arXiv 2402.07871 equation 9; Tables 1, 5, 8; L0 from the authors' code",
    formula="L = c + (g / G^gamma + a) / N^alpha + b / D^beta",
    definitions=("N: total parameters without embeddings and routers", "D: training tokens (C4, sequences of 256)",
                 "FLOPs: (72 d_model^2 + 14 d_model E G) blocks a token, with d_model = 64 blocks"),
    variables=(*SIZE, Variable("tokens", "D"), GRANULARITY, RATE),
    sets=PUBLISHED,
    predict=predict,
    domain=_domain,
    budget=(Variable("flops", "of the whole training, routing included"), GRANULARITY, RATE),
    optimum=optimum,
    form=FINE_GRAINED,
)
