"""What a process that makes a starter model says while it works."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from rlad.starters.recipes import Role


@dataclass(frozen=True, slots=True, kw_only=True)
class StarterProgress:
    """How far one model is.

    Attributes:
        stage: `training` counts optimizer steps, `measuring` responses.
        loss: of the last step, nats a response token; None before the first step and while measuring.
        tokens_per_s: mean speed since the start, padding and prompts included.
    """

    role: Role
    stage: Literal["training", "measuring"]
    done: int
    total: int
    loss: float | None = None
    tokens_per_s: float | None = None


OnProgress = Callable[[StarterProgress], None]
