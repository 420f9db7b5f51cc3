"""`upmix recipes`: what there is to train."""

import json
from typing import Annotated

import typer


def command(as_json: Annotated[bool, typer.Option("--json", help="print one JSON object")] = False) -> None:
    """List the recipes with their one-line description."""
    from framework.recipe import read_description, recipe_names

    rows = [{"name": name, "description": read_description(name)} for name in recipe_names()]
    if as_json:
        print(json.dumps({"recipes": rows}, indent=1))
        return
    width = max((len(row["name"]) for row in rows), default=0)
    for row in rows:
        print(f"{row['name']:<{width}}  {row['description']}")
