"""The derived sizes of a recipe: counts of parameters and FLOPs."""

from __future__ import annotations

from collections.abc import Callable

from framework.recipe.architecture import Architecture, used_d_ff
from framework.recipe.flops import training_flops_per_token
from framework.recipe.parameters import BODY, EMBEDDING, NORM, ROUTER, Parameter, parameters

MOE_SIZES = ("num_experts", "top_k", "d_expert", "granularity", "expansion_rate")


def sizes(architecture: Architecture, seq_len: int) -> dict[str, int | None]:
    """Sizes by the names that `upmix show --json` gives them.

    d_ff is that of the model's ffn section. The sizes of experts are those of the first MoE letter in the pattern, None
    without one; granularity and expansion_rate are None too where they are not whole. params_total and params_active
    leave out nothing; the non_embedding counts leave out embedding, unembedding, routers and norms, as the papers do.
    """
    rows = parameters(architecture)
    body = [row for row in rows if row.part == BODY]
    return {
        "num_layers": len(architecture.layers),
        "d_ff": used_d_ff(architecture),
        **{name: _first(architecture, "moe", name) for name in MOE_SIZES},
        "params_total": sum(row.size for row in rows),
        "params_active": sum(row.active_size for row in rows),
        "params_embedding": _count(rows, lambda row: row.part == EMBEDDING),
        "params_router": _count(rows, lambda row: row.part == ROUTER),
        "params_norm": _count(rows, lambda row: row.part == NORM),
        "params_total_non_embedding": sum(row.size for row in body),
        "params_active_non_embedding": sum(row.active_size for row in body),
        "flops_per_token": training_flops_per_token(architecture, seq_len, rows),
    }


def _count(rows: list[Parameter], wanted: Callable[[Parameter], bool]) -> int:
    return sum(row.size for row in rows if wanted(row))


def _first(architecture: Architecture, kind: str, name: str) -> int | None:
    return next((getattr(sub.settings, name) for sub in architecture.sublayers() if sub.kind == kind), None)
