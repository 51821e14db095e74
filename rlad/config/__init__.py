"""A run's configuration: pydantic models of its YAML. Unknown keys are refused with the nearest right one."""

from rlad.config.load import load_evaluation_suite, load_run_config
from rlad.config.models import (
    CheckpointConfig,
    ClusterConfig,
    EvaluationConfig,
    EvaluationSuite,
    KnightsKnavesPrompts,
    LearnerConfig,
    ModelConfig,
    OptimizerConfig,
    PromptFile,
    PromptSource,
    ReferenceConfig,
    RolloutConfig,
    RunConfig,
    TeacherConfig,
    TeacherMix,
    TrainingConfig,
    VerifierPoolConfig,
)

__all__ = [
    "CheckpointConfig",
    "ClusterConfig",
    "EvaluationConfig",
    "EvaluationSuite",
    "KnightsKnavesPrompts",
    "LearnerConfig",
    "ModelConfig",
    "OptimizerConfig",
    "PromptFile",
    "PromptSource",
    "ReferenceConfig",
    "RolloutConfig",
    "RunConfig",
    "TeacherConfig",
    "TeacherMix",
    "TrainingConfig",
    "VerifierPoolConfig",
    "load_evaluation_suite",
    "load_run_config",
]
