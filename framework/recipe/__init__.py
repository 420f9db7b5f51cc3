"""The typed schema of recipes, their loading, overrides, and where each value came from. Never imports torch."""

from framework.recipe.architecture import Architecture, Layer, Sublayer, architecture, derived_value
from framework.recipe.check import require_runnable
from framework.recipe.dump import dump
from framework.recipe.errors import Origin, RecipeError
from framework.recipe.files import recipe_names
from framework.recipe.load import Loaded, Variants, load_recipe, read_description, read_variants
from framework.recipe.parameters import Parameter, parameters
from framework.recipe.schema import Model, Recipe
from framework.recipe.sizes import sizes

__all__ = [
    "Architecture", "Layer", "Loaded", "Model", "Origin", "Parameter", "Recipe", "RecipeError", "Sublayer", "Variants",
    "architecture", "derived_value", "dump", "load_recipe", "parameters", "read_description", "read_variants",
    "recipe_names", "require_runnable", "sizes",
]
