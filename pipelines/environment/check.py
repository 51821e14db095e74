"""Result of a check of the environment."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Status = Literal["ok", "warning", "error"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """Result of one check.

    Attributes:
        name: The property that was checked.
        status: `ok`; `warning` if a run works but slowly or inexactly; `error` if a run fails.
        detail: What was found.
        remedy: What to do about it; empty if `ok`.
    """

    name: str
    status: Status
    detail: str
    remedy: str = ""


def worst(checks: list[Check]) -> Status:
    """Return the worst status of all checks; `ok` without any."""
    found = {check.status for check in checks}
    return "error" if "error" in found else "warning" if "warning" in found else "ok"
