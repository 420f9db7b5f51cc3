"""Rotary positions in a config.json, for readers before transformers 5 and since."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from framework.convert.fields import Config, Facts, Mismatch, first_of, settings_of
from framework.recipe.errors import shorten

PLAIN = ("default", None)
LLAMA3 = {"factor": "factor", "low_frequency_factor": "low_freq_factor", "high_frequency_factor": "high_freq_factor",
          "original_seq_len": "original_max_position_embeddings"}
"""Fields of our `rope_scaling`, and the keys of theirs."""


@dataclass(frozen=True)
class Rope:
    """rope_theta alone is what transformers 4 reads, rope_parameters what 5 does; both are written.

    theta: the class's default. fraction: the class's default share of a head that is rotated; None: it rotates all.
    """

    theta: float = 10000.0
    fraction: float | None = None

    def write(self, facts: Facts) -> dict[str, Any]:
        settings = settings_of(facts.architecture, "attention")
        if settings is None or not settings.rope:
            return {}
        parameters: dict[str, Any] = {"rope_type": "default", "rope_theta": settings.rope_base}
        written: dict[str, Any] = {"rope_theta": settings.rope_base, "rope_parameters": parameters}
        if self.fraction is not None:
            parameters["partial_rotary_factor"] = written["partial_rotary_factor"] = settings.rope_fraction
        if (scaling := settings.rope_scaling) is not None:
            parameters |= {"rope_type": "llama3", **{theirs: getattr(scaling, ours) for ours, theirs in LLAMA3.items()}}
            written["rope_scaling"] = dict(parameters)
        return written

    def read(self, config: Config) -> dict[str, Any]:
        older, newer = (config.get(key) or {} for key in ("rope_scaling", "rope_parameters"))
        parameters = {**older, **newer}
        if differing := sorted(key for key in older.keys() & newer.keys() if older[key] != newer[key]):
            raise Mismatch(f"rope_scaling and rope_parameters differ in {', '.join(differing)}; "
                           "allowed: the same in both")
        both = {**config, **parameters}
        fields = {"attention.rope": True, "attention.rope_base": float(first_of(both, ["rope_theta"], self.theta))}
        fraction = first_of(both, ["partial_rotary_factor"], 1.0 if self.fraction is None else self.fraction)
        if fraction != 1.0 and self.fraction is None:
            raise Mismatch(f"partial_rotary_factor is {fraction}; allowed: 1")
        fields["attention.rope_fraction"] = fraction
        kind = first_of(parameters, ["rope_type", "type"])
        if kind in PLAIN:
            return fields
        if kind != "llama3":
            raise Mismatch(f"rope_type is {shorten(kind)}; allowed: 'default', 'llama3'")
        if missing := [key for key in LLAMA3.values() if key not in parameters]:
            raise Mismatch(f"rope_type is 'llama3' without {', '.join(missing)}")
        return fields | {"attention.rope_scaling": {ours: parameters[theirs] for ours, theirs in LLAMA3.items()}}
