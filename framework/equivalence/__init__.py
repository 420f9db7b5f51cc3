"""Proof that a layout trains as one rank does: a recipe, shrunk by rule, is run on both and everything is compared.

`layouts` reads their names, `shrink` makes the recipe small, `measure` runs it on the ranks of a layout, `compare`
gives the row of the table, `check` goes through the layouts.
"""

import importlib

_HOMES = {
    "DEFAULT_LAYOUTS": "layouts",
    "Layout": "layouts",
    "Row": "compare",
    "TOLERANCES": "compare",
    "check_layouts": "check",
    "parse_layout": "layouts",
    "require_engine": "layouts",
    "shrink_recipe": "shrink",
}
__all__ = list(_HOMES)


def __getattr__(name: str) -> object:
    # Looked up when asked for: a layout's name is refused without waiting for torch to import.
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
