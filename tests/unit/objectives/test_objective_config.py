"""The public surface of rlad.objectives: names, signatures, defaults, and what a wrong configuration says."""

from __future__ import annotations

import inspect
import math
from typing import Any

import pydantic
import pytest

import rlad.objectives
from rlad.errors import ConfigError
from rlad.objectives import GrpoConfig, Objective, ObjectiveConfig, TrrdConfig, build_objective


def test_public_names_are_pinned() -> None:
    assert rlad.objectives.__all__ == [
        "GrpoConfig",
        "MetricSums",
        "Objective",
        "ObjectiveConfig",
        "ObjectiveOutput",
        "ObjectiveSettings",
        "TrrdConfig",
        "build_objective",
        "check_missing_teacher",
        "group_advantages",
    ]
    padded, packed = (list(inspect.signature(form).parameters) for form in (Objective.__call__, Objective.packed))
    assert padded == ["self", "policy_logprobs", "behaviour_logprobs", "teacher_logprobs", "advantages", "mask"]
    assert packed == ["self", "policy_logprobs", "behaviour_logprobs", "teacher_logprobs", "advantages", "weights"]
    assert list(inspect.signature(build_objective).parameters) == ["config"]


def test_defaults_are_those_of_the_paper() -> None:
    assert TrrdConfig().model_dump() == {
        "name": "trrd",
        "alpha": 0.5,
        "teacher_log_ratio_clamp": 1.0,
        "teacher_clamp_gradient": "clipped",
        "eps_low": 0.20,
        "eps_high": 0.28,
    }
    assert GrpoConfig().model_dump() == {"name": "grpo", "eps_low": 0.20, "eps_high": 0.28}


def test_mapping_and_model_build_the_same_objective() -> None:
    assert build_objective({"name": "trrd", "alpha": 0.7}).config == build_objective(TrrdConfig(alpha=0.7)).config == TrrdConfig(alpha=0.7)
    assert build_objective({"name": "grpo", "eps_high": 0.2}).config == GrpoConfig(eps_high=0.2)


def test_union_is_discriminated_by_name_inside_a_larger_model() -> None:
    class Run(pydantic.BaseModel):
        objective: ObjectiveConfig

    assert Run.model_validate({"objective": {"name": "grpo"}}).objective == GrpoConfig()
    assert Run.model_validate({"objective": {"name": "trrd", "alpha": 0.1}}).objective == TrrdConfig(alpha=0.1)


def test_teacher_is_used_only_below_alpha_one() -> None:
    assert TrrdConfig(alpha=0.999).uses_teacher
    assert not TrrdConfig(alpha=1.0).uses_teacher
    assert not GrpoConfig().uses_teacher
    assert TrrdConfig.zero_advantage_gives_zero_gradient
    assert GrpoConfig.zero_advantage_gives_zero_gradient


def test_configuration_is_frozen() -> None:
    with pytest.raises(pydantic.ValidationError, match="frozen"):
        TrrdConfig().alpha = 0.1


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        ({"name": "ppo"}, "unknown objective 'ppo': expected one of 'trrd', 'grpo'"),
        ({}, "an objective needs a `name`, one of 'trrd', 'grpo'; got {}"),
        ({"name": "trrd", "alhpa": 0.5}, "objective 'trrd' has no setting `alhpa`; did you mean `alpha`?"),
        ({"name": "grpo", "alpha": 0.5}, "objective 'grpo' has no setting `alpha`; it has name, eps_low, eps_high"),
        ({"name": "trrd", "alpha": 1.5}, "objective setting trrd.alpha: Input should be less than or equal to 1 (got 1.5)"),
        ({"name": "trrd", "alpha": -0.1}, "objective setting trrd.alpha: Input should be greater than or equal to 0 (got -0.1)"),
        ({"name": "trrd", "teacher_log_ratio_clamp": 0}, "objective setting trrd.teacher_log_ratio_clamp: Input should be greater than 0 (got 0)"),
        (
            {"name": "trrd", "teacher_clamp_gradient": "none"},
            "trrd.teacher_clamp_gradient: Input should be 'clipped' or 'straight_through' (got 'none')",
        ),
        ({"name": "grpo", "eps_low": 1}, "objective setting grpo.eps_low: Input should be less than 1 (got 1)"),
        ({"name": "grpo", "eps_high": "wide"}, "objective setting grpo.eps_high: Input should be a valid number"),
        ({"name": "grpo", "eps_high": math.nan}, "objective setting grpo.eps_high"),
    ],
)
def test_wrong_configuration_is_one_clear_sentence(config: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError) as error:
        build_objective(config)
    assert sentence in str(error.value)
    assert "\n" not in str(error.value)
