"""The resolved recipe as YAML text that loads to the same recipe."""

from __future__ import annotations

from typing import Any

import yaml

from framework.recipe.schema import Recipe

_Dumper = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
"""LibYAML's where PyYAML has it: the same bytes for ASCII four times as fast, and U+0085 survives only there."""


def dump(recipe: Recipe) -> str:
    """Every field with its value, in the schema's order; derived fields that nobody stated are null."""
    return yaml.dump(_plain(recipe.model_dump()), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    return [_plain(inner) for inner in value] if isinstance(value, tuple) else value
