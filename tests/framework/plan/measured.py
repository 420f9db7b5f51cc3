"""Rehearses layouts, outside pytest, whose environment makes Triton interpret: prints a JSON list of what they took."""

import json
import sys
from dataclasses import asdict

from framework.plan.rehearsal import rehearse
from framework.recipe import load_recipe

if __name__ == "__main__":
    print(json.dumps([asdict(rehearse(load_recipe(recipe, overrides), rank))
                      for recipe, overrides, rank in json.load(sys.stdin)]))
