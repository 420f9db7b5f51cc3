"""The joint law of dense models and mixtures of experts (arXiv 2502.05172): loss by size, tokens and experts."""

from __future__ import annotations

from framework.laws.fit.forms import JOINT
from framework.laws.joint_formula import NAME, PUBLISHED, Coefficients, of_experts, point
from framework.laws.joint_optimum import optimum
from framework.laws.joint_shape import VOCABULARY
from framework.laws.law import Law
from framework.laws.values import Range, Values, Variable, require


def predict(values: Values, coefficients: Coefficients | None = None) -> Values:
    """The loss, with the total parameters, training FLOPs and tokens for each parameter."""
    num_params, tokens, num_experts = require(NAME, values, "num_params_active", "tokens", "num_experts")
    return point(of_experts(num_experts, coefficients), num_params, tokens, num_experts, values["vocab_size"])


def _domain(values: Values) -> dict[str, Range]:
    return {"num_params_active": (79e6, 2.7e9), "tokens": (0.5e9, 80e9), "num_experts": (1, 32),
            "tokens_per_param": (1, 400)}


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
    optimum=optimum,
    form=JOINT,
)
