"""Starter models: recipes, and the cache of trained models. `pipelines.starters` trains them."""

from rlad.starters.cache import StarterRecord, is_finished, is_missing_starter, parse_starter, starter_directory
from rlad.starters.recipes import RECIPES, ROLES, Role, StarterRecipe, find_recipe

__all__ = [
    "RECIPES",
    "ROLES",
    "Role",
    "StarterRecipe",
    "StarterRecord",
    "find_recipe",
    "is_finished",
    "is_missing_starter",
    "parse_starter",
    "starter_directory",
]
