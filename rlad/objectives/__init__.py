"""Training objectives: pure functions of tensors.

An objective consists of its settings, a member of the union in `rlad.config.objectives`, and one module here that
computes its token losses. `build.py` maps settings to objectives.
"""

from rlad.advantages import group_advantages
from rlad.config.objectives import (
    EntropyBonus,
    GrpoConfig,
    KdrlConfig,
    ObjectiveConfig,
    ObjectiveSettings,
    OpdConfig,
    SftConfig,
    TrrdConfig,
)
from rlad.objectives.build import build_objective
from rlad.objectives.entropy import EntropyController
from rlad.objectives.metrics import MetricSums
from rlad.objectives.objective import Objective, ObjectiveOutput, check_missing_teacher
from rlad.objectives.tokens import Extras

__all__ = [
    "EntropyBonus",
    "EntropyController",
    "Extras",
    "GrpoConfig",
    "KdrlConfig",
    "MetricSums",
    "Objective",
    "ObjectiveConfig",
    "ObjectiveOutput",
    "ObjectiveSettings",
    "OpdConfig",
    "SftConfig",
    "TrrdConfig",
    "build_objective",
    "check_missing_teacher",
    "group_advantages",
]
