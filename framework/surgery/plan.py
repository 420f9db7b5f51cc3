"""The plan: for every parameter of the target, what it is made of."""

from __future__ import annotations

from framework.errors import UserError
from framework.parametrization import Widths, widths
from framework.recipe import Loaded, parameters
from framework.surgery.match import Pair
from framework.surgery.rules import ByRecipe, Copied, ExpertStack, Rule, SharedUnits, Uniform, VirtualGroups, Zeros
from framework.surgery.scaling import factors, needed_factor, shared_factor
from framework.surgery.task import Upcycling

HIDDEN_DIM = {"gate": 0, "up": 0, "down": 1}


def make_plan(task: Upcycling) -> dict[str, Rule]:
    """Rules by the target's parameter names, in the model's order. Randomness follows the target's training.seed.

    Raises UserError where the parametrizations differ in what weights cannot make up for.
    """
    before, after = (widths(loaded.recipe, loaded.architecture) for loaded in (task.source.loaded, task.target))
    _require_same_products(task.source.loaded, before, after)
    mixtures = {pair.prefix: pair for pair in task.pairs if pair.becomes_mixture}
    plan: dict[str, Rule] = {}
    for row in parameters(task.target.architecture):
        prefix, _, inner = row.name.partition("block.")
        pair = mixtures.get(f"{prefix}block.")
        if pair is None:
            ratio = _multiplier_ratio(before, after, row.name, row.name)
            plan[row.name] = Copied(row.name, ratio, 1 / ratio)
        else:
            plan[row.name] = _of_mixture(task, pair, inner, row.name, before, after)
    return plan


def _of_mixture(task: Upcycling, pair: Pair, inner: str, name: str, before: Widths, after: Widths) -> Rule:
    """inner: the name within the block."""
    options, split, seed = task.options, task.splits[pair.prefix], task.target.recipe.training.seed
    if inner == "router.weight":
        if options.router == "uniform":
            return Uniform(name, seed)
        return VirtualGroups(split.granularity) if options.router == "virtual_groups" else ByRecipe()
    if inner == "shared_router.weight":
        return Zeros()
    part, _, matrix = inner.removesuffix(".weight").partition(".")
    if part not in ("experts", "shared"):
        return ByRecipe()

    moe = pair.target.settings
    needed = needed_factor(moe, split) if part == "experts" else shared_factor(moe)
    source = f"{pair.prefix}{matrix}.weight"
    factor = factors(needed, moe.activation, options.scaling)[matrix]
    # The mixture's output is applied / needed of the dense block's, of which each of the replicas has an equal share.
    applied = 1.0 if options.scaling == "none" else needed
    share = applied / needed / (split.replicas if part == "experts" else 1)
    ratio = _multiplier_ratio(before, after, source, name)
    made = dict(source=source, dim=HIDDEN_DIM[matrix], factor=factor * ratio, moment_factor=share / (factor * ratio))
    if part == "shared":
        return SharedUnits(**made, units=split.shared_units)
    return ExpertStack(**made, split=split, name=name, block=f"{pair.prefix}experts", seed=seed,
                       drop_ratio=options.drop_ratio if options.method == "drop" else 0.0,
                       noise_std=options.noise_std, noise_share=options.noise_share)


def _multiplier_ratio(before: Widths, after: Widths, source: str, target: str) -> float:
    """What a weight is to be multiplied by where its product has another factor under the target's parametrization."""
    return before.rule(source).multiplier / after.rule(target).multiplier


def _require_same_products(source: Loaded, before: Widths, after: Widths) -> None:
    """What weights cannot make up for: factors on attention's q.k, and a tied matrix' factor at one of its ends."""
    model = source.recipe.model
    told = [" ".join(f"{letter} {factor:g}" for letter, factor in each.attention.items() if factor != 1.0) or "1"
            for each in (after, before)]
    if told[0] != told[1] and model.multipliers.attention is None:
        raise UserError(f"parametrization: its factor on q.k is {told[0]} in the target, {told[1]} in the dense run; "
                        "allowed: the same, by parametrization.attention_scale and base_d_model")
    if model.tie_embeddings and (ratio := _multiplier_ratio(before, after, *["unembedding.weight"] * 2)) != 1.0:
        raise UserError(f"parametrization: the logits' factor in the dense run is {ratio:g} times the target's, and a "
                        "tied embedding cannot make up for it; allowed: the same parametrization")
