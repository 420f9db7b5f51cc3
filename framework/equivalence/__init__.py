"""Proof that a layout trains as one rank does: a recipe, shrunk by rule, is run on both and everything is compared.

`layouts` reads their names, `shrink` makes the recipe small, `measure` runs it on the ranks of a layout, `compare`
gives the row of the table, `check` goes through the layouts.
"""

from parallel.lazy import lazily

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
__getattr__ = lazily(__name__, _HOMES)
