"""Whether an upcycled block computes what the dense one did, and how far off it is where it does not."""

from __future__ import annotations

from framework.recipe.schema import MoE
from framework.surgery.options import Options
from framework.surgery.scaling import is_exact, needed_factor, shared_factor, sums_to_one
from framework.surgery.split import Split


def deviations(moe: MoE, split: Split, options: Options) -> list[str]:
    """Why the mixture's output differs from the dense block's, a line each with what to expect; none: they are equal.

    Equal are (derived): copies, whatever the router says, where gates sum to one; shards with virtual groups where
    gates sum to one and top_k is a multiple of the shards, since a token then takes whole replicas, whose shards share
    one gate; each with factors that are exact, shared experts or not.
    """
    needed, found = needed_factor(moe, split), []
    if not sums_to_one(moe):
        found.append(_uneven_gates(moe, split))
    elif split.granularity > 1 and (options.router != "virtual_groups" or moe.top_k % split.granularity):
        cause = ("the router has no virtual groups" if options.router != "virtual_groups"
                 else f"top_k={moe.top_k} is no multiple of the {split.granularity} shards")
        found.append(f"{cause}: a token's experts are not one of every shard, so that it gets some shards of the block "
                     "twice and some not at all; right on average over tokens only")
    found += _wrong_factors("routed experts'", needed, moe.activation, options.scaling)
    if split.num_shared_units:
        found += _wrong_factors("shared experts'", shared_factor(moe), moe.activation, options.scaling)
    if options.method == "drop" and options.drop_ratio > 0:
        found.append(f"{options.drop_ratio:g} of each expert's hidden units start anew: the output keeps about "
                     f"{1 - options.drop_ratio:g} of the dense block's, the rest is noise of its size")
    if options.noise_std > 0:
        found.append(f"noise of std {options.noise_std:g} is added in {options.noise_share:g} of each expert's hidden "
                     "units: the difference grows in proportion to it")
    if moe.capacity_in_evaluation and (limit := capacity_warning(moe)):
        found.append(limit)
    if moe.output_norm:
        found.append("model.moe.output_norm: the output is normalised, so that only its direction is the dense block's")
    return found


def capacity_warning(moe: MoE) -> str | None:
    """What an expert's limit does to the promise; None without one."""
    if moe.capacity_factor is None or moe.router == "expert_choice":
        return None
    when = "also in evaluation" if moe.capacity_in_evaluation else "in training"
    return (f"model.moe.capacity_factor={moe.capacity_factor:g}: experts that are full drop tokens {when}, which then "
            "get less than the dense block's output: no equality where that happens")


def _uneven_gates(moe: MoE, split: Split) -> str:
    if moe.router == "expert_choice":
        return ("router expert_choice: a token gets as many experts as choose it, none or several; right on average "
                "over tokens only")
    if moe.router == "sigmoid":
        return ("gates are sigmoids that do not sum to one: right for router logits of 0, else off by the mean of the "
                "chosen gates over 1/2, less 1")
    return (f"gates are a softmax over all {split.num_experts} experts: right where they are even; the {moe.top_k} "
            "chosen are the largest, so that the output is too large by their sum over "
            f"{moe.top_k}/{split.num_experts}, less 1, which falls to 0 with the router's logits")


def _wrong_factors(whose: str, total: float, activation: str, scaling: str) -> list[str]:
    if is_exact(total, activation, scaling):
        return []
    if scaling == "none":
        return [f"the {whose} weights are not scaled: their output is {1 / total:.4g} of the dense block's where gates "
                "are even; --scaling exact or paper makes up for it"]
    factor = total ** (1 / 3 if activation == "swiglu" else 1 / 2)
    name = "silu" if activation == "swiglu" else activation
    return [f"the {whose} weights are scaled by a = {factor:.4g}, but {name} is not homogeneous: {name}(a z) is "
            f"a {name}(z) only far from 0; near it the relative error is about (a - 1) z "
            f"{'/ 2' if name == 'silu' else '* 0.8'} for a pre-activation z; --scaling exact has none"]
