"""Training objectives: a typed configuration each, and pure functions of tensors.

An objective is one file (its configuration and its token losses) and its entry in the union `ObjectiveConfig`, which is its only registration.
"""

from rlad.advantages import group_advantages
from rlad.objectives.build import ObjectiveConfig, build_objective
from rlad.objectives.entropy import EntropyBonus, EntropyController
from rlad.objectives.grpo import GrpoConfig
from rlad.objectives.kdrl import KdrlConfig
from rlad.objectives.metrics import MetricSums
from rlad.objectives.objective import Objective, ObjectiveOutput, ObjectiveSettings, check_missing_teacher
from rlad.objectives.opd import OpdConfig
from rlad.objectives.sft import SftConfig
from rlad.objectives.tokens import Extras
from rlad.objectives.trrd import TrrdConfig

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
