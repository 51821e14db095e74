"""Where starter models are kept, by content, and how `starter:RECIPE/ROLE` becomes a directory."""

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
from rlad.starters.recipes import ROLES, Role, StarterRecipe, find_recipe

PREFIX = "starter:"
RECORD_FILE = "starter.json"
"""Written last, so a directory that has it is whole."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StarterRecord:
    """What is known of a finished starter model; kept beside its weights.

    Attributes:
        recipe: the content that made it, this role's part and what both share.
        num_parameters: counted once.
        accuracies: by sampling setting, for example `greedy` or `T=1`, on puzzles of the evaluation split.
        training_tokens: padded tokens trained on, prompts included.
        train_seconds: wall time of training alone.
        total_seconds: wall time of training and measuring.
        cpu_seconds: CPU time of both.
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
        content = {field: getattr(self, field) for field in self.__slots__}
        content["accuracies"] = {setting: summary.as_dict() for setting, summary in self.accuracies.items()}
        (directory / RECORD_FILE).write_text(json.dumps(content, indent=2) + "\n")

    @classmethod
    def read(cls, directory: Path) -> StarterRecord:
        content = json.loads((directory / RECORD_FILE).read_text())
        content["accuracies"] = {
            setting: EvaluationSummary.from_dict(summary) for setting, summary in content["accuracies"].items()
        }
        return cls(**content)


def starters_folder(cache_dir: Path | None = None) -> Path:
    """`cache_dir`, else `$RLAD_CACHE`, else the user's cache directory (`~/.cache/rlad`); with the sub-folder of starters."""
    if cache_dir is None:
        configured = os.environ.get("RLAD_CACHE")
        cache_dir = Path(configured) if configured else user_cache_path("rlad", appauthor=False)
    return cache_dir.expanduser().absolute() / "starters"


def starter_directory(recipe: StarterRecipe, role: Role, cache_dir: Path | None = None) -> Path:
    """Where this role's model is, or would be."""
    return starters_folder(cache_dir) / f"{recipe.name}-{role}-{recipe.digest(role)}"


def is_finished(directory: Path) -> bool:
    """Whether a starter's directory is whole."""
    return (directory / RECORD_FILE).is_file()


def parse_starter(path: str) -> tuple[StarterRecipe, Role] | None:
    """The recipe and role that `starter:RECIPE/ROLE` names; None for any other path.

    Raises:
        PlanError: no such recipe or role.
    """
    if not path.startswith(PREFIX):
        return None
    name, _, role = path.removeprefix(PREFIX).partition("/")
    recipe = find_recipe(name)
    for known in ROLES:
        if role == known:
            return recipe, known
    raise PlanError(f"a starter model is starter:{name}/teacher or starter:{name}/student, got {path!r}")


def is_missing_starter(path: str, cache_dir: Path | None = None) -> bool:
    """Whether `path` names a starter model that is not made yet.

    Raises:
        PlanError: no such recipe or role.
    """
    starter = parse_starter(path)
    return starter is not None and not is_finished(starter_directory(*starter, cache_dir))
