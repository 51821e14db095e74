"""Training objectives: pure functions of tensors.

An objective consists of its settings, a member of the union in `rlad.config.objectives`, and one module here that
computes its token losses. `build.py` maps settings to objectives.
"""

from rlad.advantages import group_advantages
from rlad.config.objectives import (
    EntropyBonus,
    EopdConfig,
    ExopdConfig,
    GrpoConfig,
    KdrlConfig,
    ObjectiveConfig,
    ObjectiveSettings,
    OpdConfig,
    RlsdConfig,
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
    "EopdConfig",
    "ExopdConfig",
    "Extras",
    "GrpoConfig",
    "KdrlConfig",
    "MetricSums",
    "Objective",
    "ObjectiveConfig",
    "ObjectiveOutput",
    "ObjectiveSettings",
    "OpdConfig",
    "RlsdConfig",
    "SftConfig",
    "TrrdConfig",
    "build_objective",
    "check_missing_teacher",
    "group_advantages",
]
