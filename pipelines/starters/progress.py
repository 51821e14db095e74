"""Progress reports of starter model training."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from rlad.starters.recipes import Role


@dataclass(frozen=True, slots=True, kw_only=True)
class StarterProgress:
    """Progress of one model.

    Attributes:
        role: Role of the model.
        stage: `training` counts optimizer steps, `measuring` counts evaluation responses.
        done: Completed steps or responses.
        total: Total steps or responses.
        loss: Loss of the last step, nats per response token; None before the first step and while measuring.
        tokens_per_s: Mean throughput since the start, including prompts and padding; None while measuring.
    """

    role: Role
    stage: Literal["training", "measuring"]
    done: int
    total: int
    loss: float | None = None
    tokens_per_s: float | None = None


OnProgress = Callable[[StarterProgress], None]
