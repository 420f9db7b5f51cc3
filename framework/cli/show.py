"""`upmix show RECIPE [key=value ...]`: the resolved recipe, where each value came from, and the sizes that follow."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from framework.recipe import Loaded


def command(
    recipe: Annotated[str, typer.Argument(help="a name that `upmix recipes` lists, or a .yaml file")],
    overrides: Annotated[list[str] | None, typer.Argument(help="key=value, as model.moe.granularity=16")] = None,
    roles: Annotated[bool, typer.Option("--roles", help="the parameters of each role too")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="print one JSON object")] = False,
) -> None:
    """Print the resolved recipe with the origin of each value, the pattern in words and the derived sizes."""
    from framework.recipe import load_recipe, role_rows, sizes

    loaded = load_recipe(recipe, overrides or ())
    derived = sizes(loaded.architecture, loaded.recipe.data.seq_len)
    rows = role_rows(loaded.architecture) if roles else []
    if as_json:
        found = {"recipe": loaded.recipe.model_dump(mode="json"), "sizes": derived}
        print(json.dumps(found | ({"roles": rows} if roles else {}), indent=1))
        return
    print("\n".join([*_tree(loaded), "", *_pattern(loaded), *_sizes(derived), *_roles(rows)]))


def _tree(loaded: Loaded) -> Iterator[str]:
    lines = list(_lines(loaded, loaded.recipe.model_dump(), "", 0))
    width = min(60, max(len(text) for text, _ in lines))
    for text, origin in lines:
        yield f"{text:<{width}}  # {origin}" if origin else text


def _lines(loaded: Loaded, section: dict[str, Any], prefix: str, depth: int) -> Iterator[tuple[str, str]]:
    from framework.recipe import derived_value

    for name, value in section.items():
        key, indent = f"{prefix}{name}", "  " * depth
        if isinstance(value, dict) and value:
            yield f"{indent}{name}:", ""
            yield from _lines(loaded, value, f"{key}.", depth + 1)
            continue
        origin = str(loaded.origins.get(key, "default"))
        if value is None and (found := derived_value(loaded.architecture, key)) is not None:
            value, origin = found, "derived" if origin == "default" else f"derived; {origin}"
        yield f"{indent}{name}: {_text(value)}", origin


def _text(value: Any) -> str:
    return value if isinstance(value, str) and value else json.dumps(value)


def _pattern(loaded: Loaded) -> Iterator[str]:
    from framework.recipe.pattern import count, describe

    pattern, names = loaded.architecture.pattern, loaded.architecture.names()
    yield f"layers                       {describe(pattern, names)}"
    yield f"sublayers                    {count(pattern, names)}"


def _sizes(derived: dict[str, int | None]) -> Iterator[str]:
    for name, value in derived.items():
        if value is not None:
            yield f"{name:<27}  {value:,}"


def _roles(rows: list[dict[str, Any]]) -> Iterator[str]:
    if rows:
        yield f"\n{'role':<22} {'shape':<22} {'parameters':>10} {'numbers':>16} {'active':>16}"
    for row in rows:
        shape = "x".join(map(str, row["shape"]))
        yield f"{row['role']:<22} {shape:<22} {row['count']:>10,} {row['size']:>16,} {row['active_size']:>16,}"
