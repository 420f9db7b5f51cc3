"""All laws by name."""

from __future__ import annotations

from framework.errors import UserError, nearest
from framework.laws import (
    chinchilla,
    diloco,
    fine_grained,
    fine_grained_dense,
    joint,
    kaplan,
    learning_rate,
    upcycling,
)
from framework.laws.law import Law

LAWS: dict[str, Law] = {law.name: law for law in (
    fine_grained.LAW, fine_grained_dense.LAW, joint.LAW, learning_rate.LAW, upcycling.LAW, upcycling.DENSE_LAW,
    upcycling.SCRATCH_LAW, kaplan.LAW, chinchilla.LAW, diloco.LAW,
)}


def find_law(name: str) -> Law:
    """The law of that name. Raises UserError where there is none."""
    if name not in LAWS:
        raise UserError(f"law {name!r} is not known; allowed: {', '.join(LAWS)}{nearest(name, LAWS)}")
    return LAWS[name]
