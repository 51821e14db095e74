"""KDRL, on-policy distillation, fine-tuning and the options of the clipped surrogate equal hand-computed values."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from rlad.objectives import Extras, GrpoConfig, KdrlConfig, ObjectiveOutput, OpdConfig, build_objective


def one_token(
    config: dict[str, Any],
    *,
    policy: float,
    behaviour: float = -1.0,
    teacher: float = -1.0,
    advantage: float = 0.0,
    **extras: Any,
) -> tuple[float, float, ObjectiveOutput]:
    """Return the loss, its derivative in log pi, and the output."""
    column = torch.tensor([[policy]], dtype=torch.float64, requires_grad=True)
    output = build_objective(config)(
        policy_logprobs=column,
        behaviour_logprobs=torch.tensor([[behaviour]], dtype=torch.float64),
        teacher_logprobs=torch.tensor([[teacher]], dtype=torch.float64),
        advantages=torch.tensor([advantage], dtype=torch.float64),
        mask=torch.ones(1, 1),
        extras=Extras(**extras),
    )
    output.loss.backward()
    return output.loss.item(), column.grad.item(), output


@pytest.mark.parametrize(
    ("estimator", "loss", "slope"),
    [
        ("k2", 0.5 * 0.4**2, 0.4),
        ("k3", math.exp(-0.4) - 1 + 0.4, 1 - math.exp(-0.4)),
        ("k1_reward", 0.5, 0.5),  # the reward is log pi_T - log pi_old = -0.5, the ratio 1: loss -r A
    ],
)
def test_opd_by_hand(estimator: str, loss: float, slope: float) -> None:
    policy = -1.0 if estimator == "k1_reward" else -1.1
    found = one_token({"name": "opd", "estimator": estimator}, policy=policy, teacher=-1.5, advantage=9.0)
    assert found[:2] == pytest.approx((loss, slope))


def test_kdrl_is_grpo_plus_the_weighted_divergence() -> None:
    """ratio e^0.1, A = 2; log pi - log pi_T = 0.6: loss -2 e^0.1 + 0.5 * 0.18, slope -2 e^0.1 + 0.5 * 0.6."""
    loss, slope, _ = one_token({"name": "kdrl", "beta": 0.5}, policy=-0.9, teacher=-1.5, advantage=2.0)
    assert (loss, slope) == pytest.approx((-2 * math.exp(0.1) + 0.09, -2 * math.exp(0.1) + 0.3))


def test_kdrl_has_a_gradient_although_all_rewards_are_equal() -> None:
    _, slope, _ = one_token({"name": "kdrl", "beta": 0.5}, policy=-0.9, teacher=-1.5, advantage=0.0)
    assert slope == pytest.approx(0.3)


def test_kdrl_with_beta_zero_is_grpo() -> None:
    kdrl = one_token({"name": "kdrl", "beta": 0.0}, policy=-0.9, teacher=-1.5, advantage=2.0)
    grpo = one_token({"name": "grpo"}, policy=-0.9, advantage=2.0)
    assert kdrl[:2] == grpo[:2]


def test_masked_response_has_no_distillation_term() -> None:
    config = {"name": "kdrl", "beta": 0.5, "imitate": "response"}
    _, slope, output = one_token(config, policy=-0.9, teacher=-1.5, is_imitated=torch.zeros(1, 1, dtype=torch.bool))
    assert slope == 0
    assert output.metrics["objective/imitated_fraction"] == 0
    _, slope, _ = one_token(config, policy=-0.9, teacher=-1.5, is_imitated=torch.ones(1, 1, dtype=torch.bool))
    assert slope == pytest.approx(0.3)


@pytest.mark.parametrize(
    ("settings", "progress", "beta"),
    [
        ({}, 0.7, 0.4),
        ({"beta_end": 0.0}, 0.0, 0.4),
        ({"beta_end": 0.0}, 0.25, 0.3),
        ({"beta_end": 0.2}, 1.0, 0.2),
        ({"beta_end": 0.0, "beta_schedule": "cosine"}, 0.5, 0.2),
        ({"beta_end": 0.0, "beta_schedule": "cosine"}, 1 / 3, 0.3),  # (1 - cos 60) / 2 = 1/4
    ],
)
def test_coefficient_changes_from_beta_to_beta_end(settings: dict[str, Any], progress: float, beta: float) -> None:
    assert KdrlConfig(beta=0.4, **settings).beta_at(progress) == pytest.approx(beta)
    _, slope, _ = one_token({"name": "kdrl", "beta": 0.4, **settings}, policy=-0.9, teacher=-1.5, progress=progress)
    assert slope == pytest.approx(0.6 * beta)


def test_sft_is_the_negative_log_likelihood() -> None:
    loss, slope, output = one_token({"name": "sft"}, policy=-0.9, behaviour=-3.0, advantage=-5.0)
    assert (loss, slope) == pytest.approx((0.9, -1.0))
    assert output.metrics["objective/negative_log_likelihood"] == pytest.approx(0.9)


def test_dual_clip_bounds_the_loss_for_negative_advantages() -> None:
    """A = -1: at ratio e^2 = 7.4 the loss is 3 without gradient; at ratio e^1 = 2.7 it is unchanged."""
    config = {"name": "grpo", "dual_clip": 3.0}
    assert one_token(config, policy=1.0, behaviour=-1.0, advantage=-1.0)[:2] == pytest.approx((3.0, 0.0))
    assert one_token(config, policy=0.0, behaviour=-1.0, advantage=-1.0)[:2] == pytest.approx((math.e, math.e))
    assert one_token(config, policy=1.0, behaviour=-1.0, advantage=1.0)[:2] == pytest.approx(
        (-1.28, 0.0)
    )  # A > 0 is clipped as without dual clip


@pytest.mark.parametrize(
    ("mode", "gap", "weight"),
    [
        ("truncate", 0.4, math.exp(0.4)),
        ("truncate", 0.9, 2.0),
        ("truncate", -2.0, math.exp(-2)),
        ("mask", 0.4, math.exp(0.4)),
        ("mask", 0.9, 0),
        ("mask", -0.9, 0),
        ("mask", math.log(2), 2.0),  # the bounds are kept
        ("mask", -math.log(2), 0.5),
    ],
)
def test_mismatch_between_engine_and_learner_by_hand(mode: str, gap: float, weight: float) -> None:
    """w = e^gap, cap 2: the surrogate at ratio 1 and A = 1 is weighted by min(w, 2), or dropped outside [1/2, 2]."""
    found = one_token(
        {"name": "grpo", "mismatch": mode},
        policy=-1.0,
        advantage=1.0,
        sampler_logprobs=torch.tensor([[-1.0 - gap]], dtype=torch.float64),
    )
    assert found[:2] == pytest.approx((-weight, -weight))


@pytest.mark.parametrize(("w", "weight"), [(0.49, 0), (0.51, 0.51), (4.9, 4.9), (5.1, 0)])
def test_mask_has_two_bounds(w: float, weight: float) -> None:
    """IcePop keeps weights within [0.5, 5] as they are."""
    found = one_token(
        {"name": "grpo", "mismatch": "mask", "mismatch_floor": 0.5, "mismatch_cap": 5.0},
        policy=-1.0,
        advantage=1.0,
        sampler_logprobs=torch.tensor([[-1.0 - math.log(w)]], dtype=torch.float64),
    )
    assert found[:2] == pytest.approx((-weight, -weight))
    assert found[2].metrics["objective/mismatch_cut_fraction"] == (weight == 0)


def test_reward_of_the_current_student_by_hand() -> None:
    """log pi = -0.9, log pi_old = -1, log pi_T = -1.5: the reward is -0.6 instead of -0.5, the ratio e^0.1."""
    values = {"policy": -0.9, "behaviour": -1.0, "teacher": -1.5}
    old = one_token({"name": "opd", "reward_student": "behaviour"}, **values)
    current = one_token({"name": "opd", "reward_student": "current"}, **values)
    assert old[:2] == pytest.approx((0.5 * math.exp(0.1), 0.5 * math.exp(0.1)))
    assert current[:2] == pytest.approx((0.6 * math.exp(0.1), 0.6 * math.exp(0.1)))
    assert current[2].metrics["objective/teacher_kl"] == pytest.approx(0.6)
    # A = 2 plus beta times the reward: (2 - 0.5 * 0.6) e^0.1 = 1.7 e^0.1.
    kdrl = {"name": "kdrl", "beta": 0.5, "estimator": "k1_reward", "reward_student": "current"}
    assert one_token(kdrl, advantage=2.0, **values)[:2] == pytest.approx((-1.7 * math.exp(0.1), -1.7 * math.exp(0.1)))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("student", ["behaviour", "current"])
def test_expected_gradient_over_samples_of_an_older_policy(seed: int, student: str) -> None:
    """With the current student it is that of KL(pi, pi_T) for any pi_old; else that of KL(pi, pi_old) is subtracted.

    The expectation is a sum over the vocabulary with the probabilities of pi_old; no token is clipped.
    """
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(5, generator=generator, dtype=torch.float64, requires_grad=True)
    old, teacher = (torch.randn(5, generator=generator, dtype=torch.float64).log_softmax(0) for _ in range(2))
    config = {"name": "opd", "reward_student": student, "eps_low": 0.999, "eps_high": 1e6}
    loss = (
        build_objective(config)
        .packed(
            policy_logprobs=logits.log_softmax(0),
            behaviour_logprobs=old,
            teacher_logprobs=teacher,
            advantages=torch.zeros(5, dtype=torch.float64),
            weights=old.exp(),
        )
        .loss
    )
    (found,) = torch.autograd.grad(loss, logits)
    pi = logits.log_softmax(0)
    expected = (pi.exp() * (pi - teacher)).sum()
    if student == "behaviour":
        expected = expected - (pi.exp() * (pi - old)).sum()
    torch.testing.assert_close(found, torch.autograd.grad(expected, logits)[0], rtol=1e-10, atol=1e-12)


def test_staleness_decides_which_student_the_reward_has() -> None:
    for settings in (OpdConfig(), KdrlConfig(estimator="k1_reward")):
        assert settings.resolved(max_staleness=0).reward_student == "behaviour"
        assert settings.resolved(max_staleness=2).reward_student == "current"
    assert OpdConfig(reward_student="behaviour").resolved(max_staleness=2).reward_student == "behaviour"
    assert OpdConfig(reward_student="current").resolved(max_staleness=0).reward_student == "current"
    assert GrpoConfig().resolved(max_staleness=2) == GrpoConfig()


def test_reference_divergence_by_hand() -> None:
    reference = torch.tensor([[-1.5]], dtype=torch.float64)
    k3 = one_token({"name": "grpo", "reference_kl": 0.2}, policy=-1.0, reference_logprobs=reference)
    assert k3[:2] == pytest.approx((0.2 * (math.exp(-0.5) - 0.5), 0.2 * (1 - math.exp(-0.5))))
    k2 = one_token(
        {"name": "grpo", "reference_kl": 0.2, "reference_kl_estimator": "k2"}, policy=-1.0, reference_logprobs=reference
    )
    assert k2[:2] == pytest.approx((0.2 * 0.125, 0.2 * 0.5))


@pytest.mark.parametrize(
    ("config", "missing"),
    [
        ({"name": "grpo", "reference_kl": 0.1}, "needs reference_logprobs, got None"),
        ({"name": "grpo", "mismatch": "mask"}, "needs sampler_logprobs, got None"),
        ({"name": "grpo", "entropy_bonus": {"coefficient": 0.1}}, "needs entropies, got None"),
        ({"name": "kdrl", "imitate": "group"}, "needs is_imitated, got None"),
        (
            {"name": "opd", "estimator": "full"},
            "needs support_logprobs, teacher_support_logprobs, teacher_tail_logprobs; got None for support_logprobs, ",
        ),
    ],
)
def test_error_names_the_missing_column(config: dict[str, Any], missing: str) -> None:
    with pytest.raises(ValueError, match=missing):
        one_token(config, policy=-1.0)
