"""Public surface: the names that users may import from packages, pinned.

A failure means that the API changed. If that is intended, change the list here and note the change in CHANGELOG.md.
"""

from __future__ import annotations

import importlib
import pkgutil

import pytest

import rlad

PUBLIC: dict[str, list[str]] = {
    "pipelines.simulation": ["DecodingSlots", "InProcess", "Server", "StandInLearner", "publication"],
    "rlad.config": [
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
    ],
    "rlad.objectives": [
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
    ],
    "rlad.starters": [
        "RECIPES",
        "ROLES",
        "Role",
        "StarterRecipe",
        "StarterRecord",
        "find_recipe",
        "is_finished",
        "is_missing_starter",
        "parse_starter",
        "starter_directory",
    ],
    "rlad.testing": [
        "FakeTeacherService",
        "StuckError",
        "VirtualTimeLoop",
        "make_group",
        "make_scored_group",
        "make_teacher_scores",
        "make_verdicts",
        "run_in_virtual_time",
    ],
    "rlad.verifiers": [
        "CodeTestsVerifierConfig",
        "ComparesAnswers",
        "CountdownVerifierConfig",
        "GivesAnswer",
        "KnightsKnavesVerifierConfig",
        "MathAnswerVerifierConfig",
        "MultipleChoiceVerifierConfig",
        "PythonFunctionVerifierConfig",
        "ReasoningGymVerifierConfig",
        "RewardModelVerifierConfig",
        "StatesAnswer",
        "Verdict",
        "Verifier",
        "VerifierConfig",
        "build_verifier",
        "read_verifier",
        "reward_models",
    ],
}

# Packages whose modules are imported by their own names, for example `rlad.data.records`.
WITHOUT_EXPORTS = {
    "rlad.data",
    "rlad.distributions",
    "rlad.evaluation",
    "rlad.integrity",
    "rlad.models",
    "rlad.monitoring",
    "rlad.registry",
    "rlad.samples",
    "rlad.sandbox",
    "rlad.teacher",
    "rlad.tokenizers",
    "rlad.weight_deltas",
}


@pytest.mark.parametrize("package", PUBLIC)
def test_package_exports_exactly_the_pinned_names(package: str) -> None:
    module = importlib.import_module(package)
    assert sorted(module.__all__) == PUBLIC[package]
    assert [name for name in PUBLIC[package] if not hasattr(module, name)] == []


def test_every_package_of_rlad_is_pinned_or_has_no_exports() -> None:
    packages = {f"rlad.{module.name}" for module in pkgutil.iter_modules(rlad.__path__) if module.ispkg}
    assert packages == {name for name in PUBLIC if name.startswith("rlad.")} | WITHOUT_EXPORTS
    exporting = {name for name in WITHOUT_EXPORTS if hasattr(importlib.import_module(name), "__all__")}
    assert exporting == set()


def test_version_is_public() -> None:
    assert [int(number) for number in rlad.__version__.split(".")[:2]]
