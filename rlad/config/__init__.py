"""A run's configuration: pydantic models of its YAML. Unknown keys are refused with the nearest right one."""

from rlad.config.load import load_run_config
from rlad.config.models import (
    CheckpointConfig,
    ClusterConfig,
    EvaluationConfig,
    GeneratorConfig,
    KnightsKnavesPrompts,
    LearnerConfig,
    ModelConfig,
    OfflineConfig,
    OptimizerConfig,
    PromptFile,
    PromptSource,
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
    "GeneratorConfig",
    "KnightsKnavesPrompts",
    "LearnerConfig",
    "ModelConfig",
    "OfflineConfig",
    "OptimizerConfig",
    "PromptFile",
    "PromptSource",
    "RolloutConfig",
    "RunConfig",
    "TeacherConfig",
    "TrainingConfig",
    "VerifierPoolConfig",
    "load_run_config",
]
