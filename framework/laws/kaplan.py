"""Kaplan's laws (arXiv 2001.08361): loss of dense models by size, by tokens, by both, or by compute."""

from __future__ import annotations

from dataclasses import dataclass

from framework.errors import UserError
from framework.laws.law import Law
from framework.laws.values import Range, Values, Variable, one_of

NAME = "kaplan"
PETAFLOP_DAY = 1e15 * 24 * 3600
SIZES = ("num_params", "num_params_active", "num_params_total")


@dataclass(frozen=True)
class Coefficients:
    """Scales: parameters, tokens and PF-days at which the loss would be one nat; and their exponents."""

    n_c: float
    alpha_n: float
    d_c: float
    alpha_d: float
    c_min: float
    alpha_c: float


PUBLISHED = {"equation_1": Coefficients(8.8e13, 0.076, 5.4e13, 0.095, 3.1e8, 0.050)}


def loss_of_size(num_params: float, of: Coefficients) -> float:
    """L(N) = (N_c / N)^alpha_N: trained on as many tokens as it takes."""
    return (of.n_c / num_params) ** of.alpha_n


def loss_of_tokens(tokens: float, of: Coefficients) -> float:
    """L(D) = (D_c / D)^alpha_D: of a model as large as it takes, stopped early."""
    return (of.d_c / tokens) ** of.alpha_d


def loss_of_compute(flops: float, of: Coefficients) -> float:
    """L(C_min) = (C_c / C)^alpha_C, C in PF-days: of the best model for the compute."""
    return (of.c_min * PETAFLOP_DAY / flops) ** of.alpha_c


def loss_of_both(num_params: float, tokens: float, of: Coefficients) -> float:
    """L(N, D) = [(N_c / N)^(alpha_N / alpha_D) + D_c / D]^alpha_D."""
    return ((of.n_c / num_params) ** (of.alpha_n / of.alpha_d) + of.d_c / tokens) ** of.alpha_d


def predict(values: Values, coefficients: Coefficients | None = None) -> Values:
    """The loss, by the law of whatever is given: the size, the tokens, both, or the FLOPs alone."""
    of = coefficients or PUBLISHED["equation_1"]
    if "flops" in values:
        if len(values) > 1:
            raise UserError(f"{NAME}: flops and {', '.join(values.keys() - {'flops'})} given; allowed: flops alone")
        return {"loss": loss_of_compute(values["flops"], of), **values}
    if values.keys() == {"tokens"}:
        return {"loss": loss_of_tokens(values["tokens"], of), **values}
    _, num_params = one_of(NAME, values, SIZES)
    if "tokens" in values:
        loss = loss_of_both(num_params, values["tokens"], of)
        return {"loss": loss, "num_params": num_params, "tokens": values["tokens"]}
    return {"loss": loss_of_size(num_params, of), "num_params": num_params}


def _domain(values: Values) -> dict[str, Range]:
    return {"num_params": (768, 1.5e9), "tokens": (22e6, 23e9)}


LAW = Law(
    name=NAME,
    title="dense Transformers by size, tokens, both or compute (superseded by Chinchilla's)",
    source="arXiv 2001.08361 equations 1.1 to 1.5, as quoted by several sources; the ranges of its runs are recalled",
    formula="L = [(N_c / N)^(alpha_N / alpha_D) + D_c / D]^alpha_D; (N_c/N)^alpha_N; (D_c/D)^alpha_D; (C_c/C)^alpha_C",
    definitions=("N: parameters without embeddings", "D: tokens (WebText2)", "C: training FLOPs, 8.64e19 to a PF-day"),
    variables=(*(Variable(name, "N, without embeddings; any of the three names") for name in SIZES),
               Variable("tokens", "D"), Variable("flops", "C, alone")),
    sets=PUBLISHED,
    predict=predict,
    domain=_domain,
)
