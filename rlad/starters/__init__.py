"""Starter models: a tokenizer, a teacher and a weak student made from generated Knights & Knaves puzzles, on CPU, cached by content."""

from rlad.starters.building import ensure_starters
from rlad.starters.cache import StarterRecord, is_finished, is_missing_starter, parse_starter, resolve_model, starter_directory
from rlad.starters.progress import StarterProgress
from rlad.starters.recipes import RECIPES, ROLES, Role, StarterRecipe, find_recipe

__all__ = [
    "RECIPES",
    "ROLES",
    "Role",
    "StarterProgress",
    "StarterRecipe",
    "StarterRecord",
    "ensure_starters",
    "find_recipe",
    "is_finished",
    "is_missing_starter",
    "parse_starter",
    "resolve_model",
    "starter_directory",
]
