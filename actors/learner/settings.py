"""Settings shared by the learner's driver side and its ranks."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ray.actor import ActorHandle

from rlad.config import RunConfig

CHECKPOINTS = "checkpoints"


EXPORT = "export"


@dataclass(frozen=True, slots=True, kw_only=True)
class LearnerSettings:
    """What every rank gets.

    Attributes:
        config: of the run.
        model_path: local directory of the student, resolved.
        run_dir: absolute; on a cluster of several nodes all ranks see it.
        broker: handle of the `ExperienceBroker`.
    """

    config: RunConfig
    model_path: str
    run_dir: Path
    broker: ActorHandle
