"""Run configuration: pydantic models of the YAML files.

Unknown keys are errors; the message names the closest known key.
"""

from rlad.config.evaluation import EvaluationConfig, EvaluationSuite, LatencyConfig
from rlad.config.learner import CheckpointConfig, LearnerConfig, OptimizerConfig, TrainingConfig
from rlad.config.load import load_evaluation_suite, load_run_config
from rlad.config.lora import LoraConfig
from rlad.config.prompts import (
    HubPrompts,
    KnightsKnavesPrompts,
    MixturePart,
    PromptFile,
    PromptMixture,
    PromptSource,
    ReasoningGymPrompts,
    SinglePromptSource,
)
from rlad.config.rollout import GeneratorConfig, OfflineConfig, RolloutConfig, VerifierPoolConfig
from rlad.config.run import RunConfig, TeacherMix
from rlad.config.shared import ClusterConfig, FailureConfig, ModelConfig
from rlad.config.teachers import (
    ReferenceConfig,
    RemoteTeacherConfig,
    ServiceTeacherConfig,
    SharedTeacherConfig,
    TeacherConfig,
    TeacherHttpConfig,
    TeacherServiceConfig,
    TeacherServiceFile,
)

__all__ = [
    "CheckpointConfig",
    "ClusterConfig",
    "EvaluationConfig",
    "EvaluationSuite",
    "FailureConfig",
    "GeneratorConfig",
    "HubPrompts",
    "KnightsKnavesPrompts",
    "LatencyConfig",
    "LearnerConfig",
    "LoraConfig",
    "MixturePart",
    "ModelConfig",
    "OfflineConfig",
    "OptimizerConfig",
    "PromptFile",
    "PromptMixture",
    "PromptSource",
    "ReasoningGymPrompts",
    "ReferenceConfig",
    "RemoteTeacherConfig",
    "RolloutConfig",
    "RunConfig",
    "ServiceTeacherConfig",
    "SharedTeacherConfig",
    "SinglePromptSource",
    "TeacherConfig",
    "TeacherHttpConfig",
    "TeacherMix",
    "TeacherServiceConfig",
    "TeacherServiceFile",
    "TrainingConfig",
    "VerifierPoolConfig",
    "load_evaluation_suite",
    "load_run_config",
]
