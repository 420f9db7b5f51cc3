"""The resolved recipe as YAML text that loads to the same recipe."""

from __future__ import annotations

from typing import Any

import yaml

from framework.recipe.schema import Recipe


def dump(recipe: Recipe) -> str:
    """Every field with its value, in the schema's order; derived fields that nobody stated are null."""
    return yaml.safe_dump(_plain(recipe.model_dump()), sort_keys=False, allow_unicode=True, width=120)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    return [_plain(inner) for inner in value] if isinstance(value, tuple) else value
