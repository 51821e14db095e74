"""Cache of starter models. A model's directory is named after the digest of its recipe."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from platformdirs import user_cache_path

from rlad.errors import PlanError
from rlad.evaluation.accuracy import EvaluationSummary
from rlad.starters.recipes import Role, StarterRecipe, find_recipe

PREFIX = "starter:"
RECORD_FILE = "starter.json"
"""Record file of a starter model. It is written last, so a directory with this file is complete."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StarterRecord:
    """Record of a finished starter model, stored with its weights.

    Attributes:
        name: Name of the model, `RECIPE/ROLE`.
        recipe: Content of the recipe: the shared settings and those of this role.
        num_parameters: Number of parameters.
        accuracies: Accuracy on the evaluation split by sampling setting, for example `greedy` or `T=1`.
        training_tokens: Number of training tokens, including prompts and padding.
        train_seconds: Wall time of training.
        total_seconds: Wall time of training and evaluation.
        cpu_seconds: CPU time of training and evaluation.
    """

    name: str
    recipe: Mapping[str, Any]
    num_parameters: int
    accuracies: Mapping[str, EvaluationSummary]
    training_tokens: int
    train_seconds: float
    total_seconds: float
    cpu_seconds: float

    def write(self, directory: Path) -> None:
        """Write the record file, which marks the directory as complete."""
        content = {field: getattr(self, field) for field in self.__slots__}
        content["accuracies"] = {setting: summary.as_dict() for setting, summary in self.accuracies.items()}
        (directory / RECORD_FILE).write_text(json.dumps(content, indent=2) + "\n")

    @classmethod
    def read(cls, directory: Path) -> StarterRecord:
        """Read the record file of a finished starter model."""
        content = json.loads((directory / RECORD_FILE).read_text())
        content["accuracies"] = {
            setting: EvaluationSummary.from_dict(summary) for setting, summary in content["accuracies"].items()
        }
        return cls(**content)


def starters_folder(cache_dir: Path | None = None) -> Path:
    """Return the directory `starters` inside the cache.

    The cache is `cache_dir`, else `$RLAD_CACHE`, else the user's cache directory (`~/.cache/rlad`).
    """
    if cache_dir is None:
        configured = os.environ.get("RLAD_CACHE")
        cache_dir = Path(configured) if configured else user_cache_path("rlad", appauthor=False)
    return cache_dir.expanduser().absolute() / "starters"


def starter_directory(recipe: StarterRecipe, role: Role, cache_dir: Path | None = None) -> Path:
    """Return the directory of a role's model, which may not exist yet."""
    return starters_folder(cache_dir) / f"{recipe.name}-{role}-{recipe.digest(role)}"


def is_finished(directory: Path) -> bool:
    """Return whether the directory of a starter model is complete."""
    return (directory / RECORD_FILE).is_file()


def parse_starter(path: str) -> tuple[StarterRecipe, Role] | None:
    """Return the recipe and role of a path `starter:RECIPE/ROLE`, or None for any other path.

    Raises:
        PlanError: The recipe or role does not exist.
    """
    if not path.startswith(PREFIX):
        return None
    name, _, role = path.removeprefix(PREFIX).partition("/")
    recipe = find_recipe(name)
    for known in recipe.roles:
        if role == known:
            return recipe, known
    raise PlanError(f"expected {' or '.join(f'starter:{name}/{known}' for known in recipe.roles)}; got {path!r}")


def is_missing_starter(path: str, cache_dir: Path | None = None) -> bool:
    """Return whether a path refers to a starter model that has not been made yet.

    Raises:
        PlanError: The recipe or role does not exist.
    """
    starter = parse_starter(path)
    return starter is not None and not is_finished(starter_directory(*starter, cache_dir))
