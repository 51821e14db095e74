"""Checkpoints in a run directory: which of them are complete, and Ray Train's own list of them."""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path

from rlad.integrity.manifest import MANIFEST

logger = logging.getLogger(__name__)

_NAME = re.compile(r"step-(\d+)")
_RAY_TRAIN_LIST = "checkpoint_manager_snapshot.json"


def newest_checkpoint(checkpoints: Path) -> Path | None:
    """Return the directory of the newest complete checkpoint; None if there is none.

    It is found by its name and manifest, not by Ray Train's list, which Ray Train does not write atomically.
    """
    found = [
        (int(match[1]), path)
        for path in checkpoints.glob("step-*")
        if (match := _NAME.fullmatch(path.name)) and (path / MANIFEST).exists()
    ]
    return max(found)[1] if found else None


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
