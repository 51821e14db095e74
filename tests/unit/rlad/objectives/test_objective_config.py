"""Public surface of rlad.objectives: names, signatures, defaults, and errors of wrong configurations."""

from __future__ import annotations

import inspect
import math
from typing import Any

import pydantic
import pytest

import rlad.objectives
from rlad.errors import ConfigError
from rlad.objectives import (
    GrpoConfig,
    KdrlConfig,
    Objective,
    ObjectiveConfig,
    OpdConfig,
    SftConfig,
    TrrdConfig,
    build_objective,
)

from .configurations import EVERY_CONFIG

NAMES = "'trrd', 'grpo', 'kdrl', 'opd', 'exopd', 'eopd', 'rlsd', 'sft'"


def test_public_names_are_pinned() -> None:
    assert rlad.objectives.__all__ == [
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
    padded, packed = (list(inspect.signature(form).parameters) for form in (Objective.__call__, Objective.packed))
    assert padded == [
        "self",
        "policy_logprobs",
        "behaviour_logprobs",
        "teacher_logprobs",
        "advantages",
        "mask",
        "extras",
    ]
    assert packed == [
        "self",
        "policy_logprobs",
        "behaviour_logprobs",
        "teacher_logprobs",
        "advantages",
        "weights",
        "extras",
    ]
    assert list(inspect.signature(build_objective).parameters) == ["config"]


SHARED = {
    "aggregation": "response_mean",
    "fixed_length": None,
    "reference_kl": 0.0,
    "reference_kl_estimator": "k3",
    "entropy_bonus": {"coefficient": 0.0, "target": None, "delta": 0.005, "max_coefficient": None},
}
SURROGATE = {
    "eps_low": 0.20,
    "eps_high": 0.28,
    "dual_clip": None,
    "advantage": "group_std",
    "mismatch": "off",
    "mismatch_cap": 2.0,
    "mismatch_floor": None,
}


def test_defaults_are_those_of_the_paper_with_every_option_off() -> None:
    anchored = {
        "alpha": 0.5,
        "teacher_log_ratio_clamp": 1.0,
        "teacher_clamp_gradient": "clipped",
        "anchor": "always",
    }
    assert TrrdConfig().model_dump() == {"name": "trrd", **anchored, **SHARED, **SURROGATE}
    assert GrpoConfig().model_dump() == {"name": "grpo", **SHARED, **SURROGATE}
    kdrl = {
        "estimator": "k2",
        "top_k": None,
        "reward_student": "auto",
        "beta": 2e-3,
        "beta_end": None,
        "beta_schedule": "linear",
        "imitate": "none",
    }
    assert KdrlConfig().model_dump() == {"name": "kdrl", **kdrl, **SHARED, **SURROGATE}
    opd = {"estimator": "k1_reward", "top_k": None, "reward_student": "auto"}
    assert OpdConfig().model_dump() == {"name": "opd", **opd, **SHARED, **SURROGATE}
    assert SftConfig().model_dump() == {"name": "sft", **SHARED}


@pytest.mark.parametrize("config", EVERY_CONFIG, ids=str)
def test_stored_settings_read_back_as_the_same_objective(config: dict[str, Any]) -> None:
    settings = build_objective(config).config
    assert build_objective(settings.model_dump(mode="json")).config == settings


def test_shown_settings_are_the_objectives_own_and_changed_options() -> None:
    assert GrpoConfig().shown_settings == {}
    assert GrpoConfig(eps_high=0.2, aggregation="token_mean").shown_settings == {
        "eps_high": 0.2,
        "aggregation": "token_mean",
    }
    assert TrrdConfig(alpha=0.3).shown_settings == {
        "alpha": 0.3,
        "teacher_log_ratio_clamp": 1.0,
        "teacher_clamp_gradient": "clipped",
        "anchor": "always",
    }


def test_mapping_and_model_build_the_same_objective() -> None:
    assert (
        build_objective({"name": "trrd", "alpha": 0.7}).config
        == build_objective(TrrdConfig(alpha=0.7)).config
        == TrrdConfig(alpha=0.7)
    )
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
    assert KdrlConfig().uses_teacher
    assert OpdConfig().uses_teacher
    assert not SftConfig().uses_teacher


def test_zero_advantage_responses_are_skipped_only_if_every_loss_term_vanishes() -> None:
    assert TrrdConfig().zero_advantage_gives_zero_gradient
    assert GrpoConfig().zero_advantage_gives_zero_gradient
    assert not GrpoConfig(reference_kl=0.1).zero_advantage_gives_zero_gradient
    assert not TrrdConfig(entropy_bonus={"coefficient": 0.1}).zero_advantage_gives_zero_gradient
    assert not TrrdConfig(entropy_bonus={"target": 0.2}).zero_advantage_gives_zero_gradient
    for config in (KdrlConfig(), OpdConfig(), SftConfig()):
        assert not config.zero_advantage_gives_zero_gradient


def test_teacher_support_is_what_the_estimator_needs() -> None:
    assert [KdrlConfig(estimator=name).teacher_support for name in ("k1_reward", "k2", "k3", "full")] == [
        None,
        None,
        None,
        "full",
    ]
    assert KdrlConfig(estimator="topk", top_k=16).teacher_support == 16
    assert TrrdConfig().teacher_support is None


def test_configuration_is_frozen() -> None:
    with pytest.raises(pydantic.ValidationError, match="frozen"):
        TrrdConfig().alpha = 0.1


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        (
            {"name": "ppo"},
            f"unknown objective 'ppo': expected one of {NAMES}",
        ),
        (
            {},
            f"an objective needs a `name`, one of {NAMES}; got {{}}",
        ),
        ({"name": "trrd", "alhpa": 0.5}, "objective 'trrd' has no setting `alhpa`; did you mean `alpha`?"),
        (
            {"name": "grpo", "alpha": 0.5},
            "objective 'grpo' has no setting `alpha`; expected one of name, aggregation, fixed_length",
        ),
        (
            {"name": "trrd", "alpha": 1.5},
            "objective setting trrd.alpha: Input should be less than or equal to 1 (got 1.5)",
        ),
        (
            {"name": "trrd", "alpha": -0.1},
            "objective setting trrd.alpha: Input should be greater than or equal to 0 (got -0.1)",
        ),
        (
            {"name": "trrd", "teacher_log_ratio_clamp": 0},
            "objective setting trrd.teacher_log_ratio_clamp: must be a number above 0, or `auto` (got 0)",
        ),
        (
            {"name": "trrd", "teacher_log_ratio_clamp": "wide"},
            "objective setting trrd.teacher_log_ratio_clamp: must be a number above 0, or `auto` (got 'wide')",
        ),
        (
            {"name": "grpo", "mismatch": "truncate", "mismatch_floor": 0.5},
            "mismatch_floor requires mismatch `mask`; got mismatch `truncate` and mismatch_floor 0.5",
        ),
        (
            {"name": "trrd", "teacher_clamp_gradient": "none"},
            "trrd.teacher_clamp_gradient: Input should be 'clipped' or 'straight_through' (got 'none')",
        ),
        ({"name": "grpo", "eps_low": 1}, "objective setting grpo.eps_low: Input should be less than 1 (got 1)"),
        ({"name": "grpo", "eps_high": "wide"}, "objective setting grpo.eps_high: Input should be a valid number"),
        ({"name": "grpo", "eps_high": math.nan}, "objective setting grpo.eps_high"),
        (
            {"name": "kdrl", "estimator": "k1"},
            "estimator `k1` is not supported as a loss",
        ),
        (
            {"name": "kdrl", "estimator": "topk"},
            "got estimator `topk` and top_k null",
        ),
        ({"name": "opd", "estimator": "k2", "top_k": 3}, "got estimator `k2` and top_k 3"),
        (
            {"name": "opd", "estimator": "k2", "dual_clip": 3},
            "mismatch and dual_clip require estimator k1_reward; got k2",
        ),
        ({"name": "kdrl", "beta_schedule": "cosine"}, "beta_schedule requires beta_end"),
        (
            {"name": "grpo", "aggregation": "fixed_length"},
            "aggregation `fixed_length` requires the setting `fixed_length`",
        ),
        (
            {"name": "grpo", "dual_clip": 1.0},
            "objective setting grpo.dual_clip: Input should be greater than 1 (got 1.0)",
        ),
    ],
)
def test_wrong_configuration_is_one_clear_sentence(config: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError) as error:
        build_objective(config)
    assert sentence in str(error.value)
    assert "\n" not in str(error.value)


def test_sentences_of_all_problems_name_setting_and_value() -> None:
    with pytest.raises(ConfigError) as error:
        build_objective({"name": "grpo", "entropy_bonus": {"max_coefficient": 0.1}, "eps_lo": 0.1, "reference_kl": -1})
    assert str(error.value) == (
        "objective setting grpo.reference_kl: Input should be greater than or equal to 0 (got -1); "
        "objective setting grpo.entropy_bonus: max_coefficient requires target; got max_coefficient 0.1 and target "
        "null, which keeps the coefficient constant (got {'max_coefficient': 0.1}); "
        "objective 'grpo' has no setting `eps_lo`; did you mean `eps_low`?"
    )
