"""How far tokens travel to their experts where every expert is as likely as any other."""

from math import comb


def mean_visits(choices: float, num_experts: int, num_ranks: int) -> float:
    """Ranks that a token visits on average: R (1 - C(E - E/R, k) / C(E, k)) (docs/parallelism.md, Dispatch).

    choices: experts of a token, k; between whole numbers, what lies between their values.
    """
    lower = int(choices)
    if lower < choices:
        share = choices - lower
        return (1 - share) * mean_visits(lower, num_experts, num_ranks) + share * mean_visits(
            lower + 1, num_experts, num_ranks)
    others = num_experts - num_experts // num_ranks
    return num_ranks * (1 - comb(others, lower) / comb(num_experts, lower))
