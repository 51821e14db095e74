"""Checkpoints in a run directory: which of them are complete, and Ray Train's own list of them."""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path

logger = logging.getLogger(__name__)

_NAME = re.compile(r"step-(\d+)")
_RAY_TRAIN_LIST = "checkpoint_manager_snapshot.json"


def checkpoints_in(folder: Path) -> list[Path]:
    """Return the directories of all checkpoints, oldest first. A directory with such a name is complete."""
    found = [(int(match[1]), path) for path in folder.glob("step-*") if (match := _NAME.fullmatch(path.name))]
    return [path for _, path in sorted(found)]


def newest_checkpoint(folder: Path) -> Path | None:
    """Return the directory of the newest checkpoint; None if there is none.

    It is found by its name, not by Ray Train's list, which Ray Train does not write atomically.
    """
    return next(reversed(checkpoints_in(folder)), None)


def drop_unusable_list(checkpoints: Path) -> None:
    """Delete Ray Train's list of checkpoints if it is damaged or names a checkpoint that does not exist.

    Ray Train refuses to start with such a list. Without one it starts a new list, and `newest_checkpoint` finds the
    checkpoint to continue from.
    """
    path = checkpoints / _RAY_TRAIN_LIST
    if not path.exists():
        return
    try:
        content = json.loads(path.read_bytes())
        latest = content["latest_checkpoint_result"]
        listed = [*content["checkpoint_results"], *([latest] if latest else [])]
        is_usable = all((checkpoints / result["checkpoint_dir_name"]).is_dir() for result in listed)
    except (ValueError, KeyError, TypeError):
        is_usable = False
    if not is_usable:
        logger.warning("ray_train_list=deleted path=%s reason=damaged_or_outdated", path)
        path.unlink()
