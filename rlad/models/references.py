"""Model references: a Hugging Face model directory, or `starter:RECIPE/ROLE` for a starter model in the cache."""

from __future__ import annotations

from pathlib import Path

from rlad.errors import PlanError
from rlad.starters.cache import is_finished, parse_starter, starter_directory


def resolve_model(path: str, cache_dir: Path | None = None) -> Path:
    """Return the local directory of a model, without creating starter models.

    Args:
        path: Hugging Face model directory, or `starter:RECIPE/ROLE`.
        cache_dir: Cache directory; default: `$RLAD_CACHE`, else the user's cache directory.

    Raises:
        PlanError: The directory, recipe or role does not exist, or the starter model has not been made yet.
    """
    starter = parse_starter(path)
    if starter is not None:
        directory = starter_directory(*starter, cache_dir)
        if not is_finished(directory):
            raise PlanError(
                f"starter model {path} does not exist yet (expected in {directory}); run `rlad pretrain "
                f"{starter[0].name}`"
            )
        return directory
    directory = Path(path).expanduser()
    if not (directory / "config.json").is_file():
        raise PlanError(
            f"no model at {path!r}: expected a Hugging Face model directory (with config.json), or starter:RECIPE/ROLE"
        )
    return directory
