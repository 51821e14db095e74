"""Model references: a Hugging Face directory, or `starter:RECIPE/ROLE` from the cache of starter models."""

from __future__ import annotations

from pathlib import Path

from rlad.errors import PlanError
from rlad.starters.cache import is_finished, parse_starter, starter_directory


def resolve_model(path: str, cache_dir: Path | None = None) -> Path:
    """The local directory of a model: a Hugging Face directory as it is, `starter:RECIPE/ROLE` from the cache. Makes nothing.

    Raises:
        PlanError: no such directory, recipe or role, or a starter that is not made yet.
    """
    starter = parse_starter(path)
    if starter is not None:
        directory = starter_directory(*starter, cache_dir)
        if not is_finished(directory):
            raise PlanError(f"{path} is not made yet (expected in {directory}): run `rlad pretrain {starter[0].name}`")
        return directory
    directory = Path(path).expanduser()
    if not (directory / "config.json").is_file():
        raise PlanError(
            f"no model at {path!r}: expected a Hugging Face model directory (one with config.json), or starter:RECIPE/ROLE"
        )
    return directory
