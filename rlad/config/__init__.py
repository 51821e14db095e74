"""A run's configuration: pydantic models of its YAML. Unknown keys are refused with the nearest right one."""

from rlad.config.load import load_run_config
from rlad.config.models import (
    CheckpointConfig,
    ClusterConfig,
    EvaluationConfig,
    KnightsKnavesPrompts,
    LearnerConfig,
    ModelConfig,
    OptimizerConfig,
    PromptFile,
    PromptSource,
    ReasoningGymPrompts,
    RolloutConfig,
    RunConfig,
    TeacherConfig,
    TrainingConfig,
    VerifierPoolConfig,
)

__all__ = [
    "CheckpointConfig",
    "ClusterConfig",
    "EvaluationConfig",
    "KnightsKnavesPrompts",
    "LearnerConfig",
    "ModelConfig",
    "OptimizerConfig",
    "PromptFile",
    "PromptSource",
    "ReasoningGymPrompts",
    "RolloutConfig",
    "RunConfig",
    "TeacherConfig",
    "TrainingConfig",
    "VerifierPoolConfig",
    "load_run_config",
]
