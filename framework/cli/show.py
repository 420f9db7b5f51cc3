"""`upmix show RECIPE [key=value ...]`: the resolved recipe, where each value came from, and the sizes that follow."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from framework.recipe import Loaded
    from framework.training.slides import Slide


def command(
    recipe: Annotated[str, typer.Argument(help="a name that `upmix recipes` lists, or a .yaml file")],
    overrides: Annotated[list[str] | None, typer.Argument(help="key=value, as model.moe.granularity=16")] = None,
    roles: Annotated[bool, typer.Option("--roles", help="the parameters of each role too")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="print one JSON object")] = False,
) -> None:
    """Print the resolved recipe with the origin of each value, the pattern in words and the derived sizes."""
    from framework.recipe import load_recipe, sizes
    from framework.training import list_slides

    loaded = load_recipe(recipe, overrides or ())
    slides = list_slides(loaded, Path(recipe).stem)
    derived = sizes(loaded.architecture, loaded.recipe.data.seq_len)
    rows = _role_table(loaded) if roles else []
    if as_json:
        found = {"recipe": loaded.recipe.model_dump(mode="json"), "sizes": derived}
        found |= {"slides": [asdict(slide) for slide in slides]} if slides else {}
        print(json.dumps(found | ({"roles": rows} if roles else {}), indent=1))
        return
    print("\n".join([*_tree(loaded), "", *_pattern(loaded), *_sizes(derived), *_slides(slides), *_roles(rows)]))


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


def _slides(slides: tuple[Slide, ...]) -> Iterator[str]:
    for slide in slides:
        yield f"{slide.name:<27}  {slide.num_steps:,} steps; branches off after step {slide.branch_step:,}"


def _role_table(loaded: Loaded) -> list[dict[str, Any]]:
    """Imported for the table alone: the rest does without PyTorch."""
    from framework.training.role_table import role_table

    return role_table(loaded)


def _roles(rows: list[dict[str, Any]]) -> Iterator[str]:
    if rows:
        yield (f"\n{'role':<20} {'shape':<16} {'count':>5} {'numbers':>14} {'class':<7} {'std':>9} {'multiplier':>10} "
               f"{'lr start':>9} {'lr end':>9} {'decay':>6}  init")
    for row in rows:
        std = "" if row["init_std"] is None else f"{row['init_std']:.3g}"
        yield (f"{row['role']:<20} {'x'.join(map(str, row['shape'])):<16} {row['count']:>5,} {row['size']:>14,} "
               f"{row['width_class'] or '':<7} {std:>9} {row['multiplier']:>10.4g} {row['lr_start']:>9.3g} "
               f"{row['lr_end']:>9.3g} {row['weight_decay']:>6.3g}  {row['init']}")
