"""Upcycling laws (arXiv 2502.03009): a dense model made into 8 experts, top 2, and the two it is compared with."""

from __future__ import annotations

import math
from dataclasses import dataclass

from framework.laws.law import Law
from framework.laws.search import crossing
from framework.laws.values import Range, Values, Variable, one_of, require

NAME, DENSE_NAME, SCRATCH_NAME = "upcycling", "upcycling_dense", "upcycling_moe"
SIZES = ("num_params", "num_params_active", "num_params_total")
LONGEST = 1e12
"""Tokens up to which a break-even is looked for; beyond, the assumed form has second crossings."""


@dataclass(frozen=True)
class Coefficients:
    """Of L = A D1^-alpha1 D2^(-alpha2 + alpha3 ln D1) + B N^-beta + E, in lower case."""

    a: float
    b: float
    alpha1: float
    alpha2: float
    alpha3: float
    beta: float
    e: float


@dataclass(frozen=True)
class FromScratch:
    """Of L = A D^-alpha + B N^-beta + E, in lower case."""

    a: float
    b: float
    alpha: float
    beta: float
    e: float

    def loss(self, num_params: float, tokens: float) -> float:
        """L(D, N), in nats a token."""
        return self.a * tokens**-self.alpha + self.b * num_params**-self.beta + self.e


UPCYCLED = {"table_2": Coefficients(16.3, 8.53, 0.043, 0.085, 7.98e-4, 0.112, 0.165)}
DENSE = {"table_2": FromScratch(8.83, 12.3, 0.088, 0.116, 0.165)}
SCRATCH = {"table_2": FromScratch(32.0, 7.05, 0.161, 0.080, 0.165)}

CAUTION = ("upcycling: partly unverified: Table 2's numbers are a machine's reading of the paper, the form and the "
           "natural logarithm are inferred",)


def loss(dense_tokens: float, tokens: float, num_params: float, of: Coefficients = UPCYCLED["table_2"]) -> float:
    """L(D1, D2, N1), in nats a token, ln being natural."""
    exponent = -of.alpha2 + of.alpha3 * math.log(dense_tokens)
    return of.a * dense_tokens**-of.alpha1 * tokens**exponent + of.b * num_params**-of.beta + of.e


def break_even_tokens(dense_tokens: float, num_params: float, of: Coefficients = UPCYCLED["table_2"]) -> float | None:
    """D2 from which a mixture of experts trained from scratch on D2 tokens is better than the upcycled one.

    None where that is not so before 1e12 tokens, or upcycling is not better even at 1e8.
    """
    def gain(log: float) -> float:
        scratch = SCRATCH["table_2"].loss(num_params, math.exp(log))
        return scratch - loss(dense_tokens, math.exp(log), num_params, of)

    log = crossing(gain, math.log(1e8), math.log(LONGEST))
    return None if log is None else math.exp(log)


def predict(values: Values, coefficients: Coefficients | None = None) -> Values:
    """The loss after upcycling, and how many tokens of it pay where the dense model is there anyway."""
    dense_tokens, tokens = require(NAME, values, "dense_tokens", "tokens")
    _, num_params = one_of(NAME, values, SIZES)
    of = coefficients or UPCYCLED["table_2"]
    found = {"loss": loss(dense_tokens, tokens, num_params, of), "num_params": num_params,
             "dense_tokens": dense_tokens, "tokens": tokens}
    even = break_even_tokens(dense_tokens, num_params, of)
    return found | ({} if even is None else {"break_even_tokens": even})


def _predict_from_scratch(name: str, published: FromScratch, values: Values, given: FromScratch | None) -> Values:
    tokens, = require(name, values, "tokens")
    _, num_params = one_of(name, values, SIZES)
    return {"loss": (given or published).loss(num_params, tokens), "num_params": num_params, "tokens": tokens}


def _domain(values: Values) -> dict[str, Range]:
    return {"num_params": (0, 7e9), "tokens": (0, 5e11), "dense_tokens": (0, 5e11)}


def _law(name: str, title: str, formula: str, definitions: tuple[str, ...], **more) -> Law:
    tokens = Variable("tokens", "D2, of the upcycled training" if name == NAME else "D, training tokens")
    sizes = tuple(Variable(each, "N1, of the dense model; any of the three names") for each in SIZES)
    before = (Variable("dense_tokens", "D1, of the dense pretraining"),) if name == NAME else ()
    return Law(name=name, title=title, source="arXiv 2502.03009 Table 2 (machine extraction); form inferred",
               formula=formula, definitions=definitions, variables=(*before, tokens, *sizes), domain=_domain,
               caution=CAUTION, **more)


SIZE_IS = "N1: parameters of the dense model (whether embeddings count is not known)"
ABOUT_RANGE = "range: models up to 7B and hundreds of billions of tokens (SlimPajama); the lower ends are not known"
LAW = _law(
    NAME, "a dense model upcycled to 8 experts, top 2", "L = A D1^-alpha1 D2^(-alpha2 + alpha3 ln D1) + B N1^-beta + E",
    ("D1: tokens of the dense pretraining; D2: tokens after upcycling", SIZE_IS, ABOUT_RANGE),
    sets=UPCYCLED, predict=predict)
DENSE_LAW = _law(
    DENSE_NAME, "the dense model from scratch, beside upcycling", "L = A D^-alpha + B N1^-beta + E",
    ("D: training tokens", SIZE_IS, ABOUT_RANGE), sets=DENSE,
    predict=lambda values, given=None: _predict_from_scratch(DENSE_NAME, DENSE["table_2"], values, given))
SCRATCH_LAW = _law(
    SCRATCH_NAME, "8 experts, top 2, from scratch, beside upcycling", "L = A D^-alpha + B N1^-beta + E",
    ("D: training tokens", SIZE_IS, ABOUT_RANGE), sets=SCRATCH,
    predict=lambda values, given=None: _predict_from_scratch(SCRATCH_NAME, SCRATCH["table_2"], values, given))
