"""The joint law's best model under limits of compute, of memory with a cache, and with inference in the bill."""

from __future__ import annotations

import math

from framework.errors import UserError
from framework.laws.joint_formula import NAME, PUBLISHED, Coefficients, of_experts, point
from framework.laws.joint_shape import VOCABULARY, num_params_active, num_params_total, positive_root
from framework.laws.search import lowest
from framework.laws.values import Values, require

CHOICES_OF_EXPERTS = (1, 2, 4, 8, 16, 32)


def optimum(values: Values, coefficients: Coefficients | None = None) -> Values:
    """The N, D and E of least loss under 6 N D + 2 N D_inference = flops and bytes of parameters and cache <= memory.

    E is the one given, or the best of 1 to 32. Experts are then compared by one formula, Table 3's: the digits
    of Table 4 that are known are not those of every E.
    Raises UserError where no model is small enough.
    """
    require(NAME, values, "flops")
    if "num_experts" in values:
        return _best_size(values, int(values["num_experts"]), coefficients)
    coefficients = coefficients or PUBLISHED["table_3"]
    points, refusals = [], []
    for num_experts in CHOICES_OF_EXPERTS:
        try:
            points.append(_best_size(values, num_experts, coefficients))
        except UserError as error:
            refusals.append(error)
    if not points:
        raise refusals[0]
    return min(points, key=lambda point: point["loss"])


def largest_width(memory_bytes: float, num_experts: float, values: Values) -> float:
    """The d_model, as a real number, whose parameters and cache fill the memory."""
    each, cached = values.get("bytes_per_parameter", 2), values.get("bytes_per_cached_value", 2)
    return positive_root((4 + 9 * num_experts) / 64 * each, 2 * values.get("kv_cache_tokens", 0) / 64 * cached,
                         2 * values.get("vocab_size", VOCABULARY) * each, memory_bytes)


def _best_size(values: Values, num_experts: int, coefficients: Coefficients | None) -> Values:
    power_sum = of_experts(num_experts, coefficients)
    flops, inference, vocab_size = values["flops"], values.get("inference_tokens", 0), values["vocab_size"]
    smallest = num_params_active(1, vocab_size)
    largest = flops / (6 + 2 * inference)
    if largest < smallest:
        least = smallest * (6 + 2 * inference)
        raise UserError(f"{NAME}: flops={flops:g} trains no model on one token; allowed: {least:.3g} or more")
    if "memory_bytes" in values:
        width = largest_width(values["memory_bytes"], num_experts, values)
        if width < 1:
            one = num_params_total(1, num_experts, vocab_size) * values["bytes_per_parameter"]
            raise UserError(f"{NAME}: memory_bytes={values['memory_bytes']:g} holds no model of {num_experts} experts; "
                            f"allowed: {one:.3g} or more")
        largest = min(largest, num_params_active(width, vocab_size))

    def tokens(num_params: float) -> float:
        return flops / (6 * num_params) - inference / 3

    if inference:
        log = lowest(lambda log: power_sum.loss(math.exp(log), tokens(math.exp(log))),
                     math.log(smallest), math.log(largest))
        num_params = math.exp(log)
    else:
        num_params = min(max(power_sum.optimum(flops)[0], smallest), largest)
    found = point(power_sum, num_params, tokens(num_params), num_experts, vocab_size)
    return found | ({"inference_flops": 2 * num_params * inference} if inference else {})
