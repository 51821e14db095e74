"""Training objectives: pure functions of tensors.

An objective is its settings in the union of `rlad.config.objectives`, and one file here with its token losses, which `build.py` names beside them.
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
