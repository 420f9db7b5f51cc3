"""Rotary positions in a config.json, for readers before transformers 5 and since."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from framework.convert.fields import Config, Facts, Mismatch, first_of, settings_of
from framework.recipe.errors import shorten

PLAIN = ("default", None)


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
            parameters |= {
                "rope_type": "llama3", "factor": scaling.factor, "low_freq_factor": scaling.low_frequency_factor,
                "high_freq_factor": scaling.high_frequency_factor,
                "original_max_position_embeddings": scaling.original_seq_len,
            }
            written["rope_scaling"] = dict(parameters)
        return written

    def read(self, config: Config) -> dict[str, Any]:
        parameters = {**(config.get("rope_scaling") or {}), **(config.get("rope_parameters") or {})}
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
        return fields | {"attention.rope_scaling": {
            "factor": parameters["factor"], "low_frequency_factor": parameters["low_freq_factor"],
            "high_frequency_factor": parameters["high_freq_factor"],
            "original_seq_len": parameters["original_max_position_embeddings"],
        }}
