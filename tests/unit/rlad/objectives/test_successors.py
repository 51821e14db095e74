"""ExOPD, EOPD and RLSD equal values computed by hand, and have the properties that their papers state."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rlad.config import load_run_config
from rlad.objectives import EopdConfig, ExopdConfig, Extras, GrpoConfig, ObjectiveOutput, RlsdConfig, build_objective
from rlad.objectives.divergence import forward_divergence, support_entropy

from .slow_reference import ragged_batch
from .test_every_objective import gradient_of, loss_of, student_of

SMOKE = Path(__file__).parents[4] / "configs" / "smoke_cpu.yaml"


def column(value: float) -> Tensor:
    return torch.tensor([[value]], dtype=torch.float64)


def one_token(
    config: dict[str, Any],
    *,
    policy: float = -1.0,
    behaviour: float = -1.0,
    teacher: float = -1.0,
    reference: float | None = None,
    advantage: float = 0.0,
    **extras: Any,
) -> tuple[float, float, ObjectiveOutput]:
    """Return the loss, its derivative in log pi, and the output."""
    log_pi = column(policy).requires_grad_()
    output = build_objective(config)(
        policy_logprobs=log_pi,
        behaviour_logprobs=column(behaviour),
        teacher_logprobs=column(teacher),
        advantages=torch.tensor([advantage], dtype=torch.float64),
        mask=torch.ones(1, 1),
        extras=Extras(reference_logprobs=None if reference is None else column(reference), **extras),
    )
    output.loss.backward()
    assert log_pi.grad is not None
    return output.loss.item(), log_pi.grad.item(), output


def test_exopd_by_hand() -> None:
    """R = 1.5 (-1 + 1.4) - (-1.2 + 1.4) = 0.4, the ratio is e^0.1."""
    values = {"policy": -1.1, "behaviour": -1.2, "teacher": -1.0, "reference": -1.4}
    loss, slope, output = one_token({"name": "exopd", "extrapolation": 1.5}, advantage=7.0, **values)
    assert (loss, slope) == pytest.approx((-0.4 * math.exp(0.1), -0.4 * math.exp(0.1)))
    assert output.metrics["objective/teacher_kl"] == pytest.approx(-0.2)  # that of k1: log pi_old - log pi_T


def test_exopd_at_one_equals_opd_bit_for_bit_and_needs_no_reference() -> None:
    assert not ExopdConfig(extrapolation=1).uses_reference
    assert ExopdConfig(extrapolation=1, reference_kl=0.1).uses_reference
    assert ExopdConfig().uses_reference
    batch = ragged_batch([4, 1, 0, 5], seed=3)
    found, expected = ({"name": "exopd", "extrapolation": 1.0}, {"name": "opd"})
    assert torch.equal(loss_of(found, batch, student_of(batch)), loss_of(expected, batch, student_of(batch)))
    assert torch.equal(gradient_of(found, batch)["policy"], gradient_of(expected, batch)["policy"])


@pytest.mark.parametrize("extrapolation", [0.5, 1.25, 2.0])
def test_exopd_is_stationary_at_its_optimum_and_nowhere_near_the_teacher(extrapolation: float) -> None:
    """At `pi_ref (pi_T / pi_ref)^lambda`, normalized, the expected gradient over the vocabulary is 0."""
    generator = torch.Generator().manual_seed(0)
    teacher, reference = (torch.randn(5, generator=generator, dtype=torch.float64).log_softmax(0) for _ in range(2))

    def expected_gradient(start: Tensor) -> Tensor:
        logits = start.clone().requires_grad_()
        pi = logits.log_softmax(0)
        loss = (
            build_objective({"name": "exopd", "extrapolation": extrapolation})
            .packed(
                policy_logprobs=pi,
                behaviour_logprobs=pi.detach(),
                teacher_logprobs=teacher,
                advantages=torch.zeros(5, dtype=torch.float64),
                weights=pi.detach().exp(),
                extras=Extras(reference_logprobs=reference),
            )
            .loss
        )
        return torch.autograd.grad(loss, logits)[0]

    optimum = reference + extrapolation * (teacher - reference)
    assert expected_gradient(optimum).abs().max() < 1e-12
    assert expected_gradient(teacher).abs().max() > 1e-2


def test_eopd_adds_the_forward_term_where_the_teacher_is_uncertain() -> None:
    """The teacher has 0.5 and 0.3 on its support and 0.2 outside: H = 1.0297. Student: 0.4 and 0.4."""
    support = {
        "support_logprobs": torch.tensor([[[0.4, 0.4]]], dtype=torch.float64).log().requires_grad_(),
        "teacher_support_logprobs": torch.tensor([[[0.5, 0.3]]], dtype=torch.float64).log(),
        "teacher_tail_logprobs": column(math.log(0.2)),
    }
    forward = 0.5 * math.log(0.5 / 0.4) + 0.3 * math.log(0.3 / 0.4)
    entropy = -(0.5 * math.log(0.5) + 0.3 * math.log(0.3) + 0.2 * math.log(0.2))
    settings = {"name": "eopd", "top_k": 2, "forward_kl": 2.0}
    loss, slope, output = one_token({**settings, "entropy_threshold": 1.02}, teacher=-1.5, **support)
    assert (loss, slope) == pytest.approx((0.5 + 2 * forward, 0.5))  # R = -0.5 at ratio 1
    assert support["support_logprobs"].grad.flatten().tolist() == pytest.approx([-1.0, -0.6])  # -2 pi_T
    assert output.metrics["objective/teacher_entropy"] == pytest.approx(entropy)
    assert output.metrics["objective/uncertain_fraction"] == 1.0
    assert output.metrics["objective/forward_kl"] == pytest.approx(forward)
    certain = one_token({**settings, "entropy_threshold": 1.03}, teacher=-1.5, **support)
    assert certain[0] == pytest.approx(0.5)
    assert certain[2].metrics["objective/uncertain_fraction"] == 0.0


def test_eopd_without_uncertain_tokens_is_opd() -> None:
    batch = ragged_batch([4, 1, 0, 5], seed=3)
    certain = {"name": "eopd", "top_k": 3, "entropy_threshold": 50.0}
    assert torch.equal(loss_of(certain, batch, student_of(batch)), loss_of({"name": "opd"}, batch, student_of(batch)))


def test_forward_divergence_over_the_whole_vocabulary_is_minimal_at_the_teacher() -> None:
    teacher = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64).log()
    logits = teacher.clone().requires_grad_()
    value = forward_divergence(logits.log_softmax(0), teacher)
    assert value.item() == pytest.approx(0.0, abs=1e-15)
    assert torch.autograd.grad(value, logits)[0].abs().max() < 1e-15


def test_entropy_of_a_whole_vocabulary_has_no_tail() -> None:
    teacher = torch.tensor([[0.5, 0.25, 0.25]], dtype=torch.float64).log()
    assert support_entropy(teacher, torch.tensor([-math.inf])).item() == pytest.approx(1.5 * math.log(2))
    tail = torch.tensor([math.log(0.25)], dtype=torch.float64)
    assert support_entropy(teacher[:, :2], tail).item() == pytest.approx(1.5 * math.log(2))


@pytest.mark.parametrize(
    ("gain", "advantage", "weight"),
    [
        (0.1, 2.0, math.exp(0.1)),
        (0.1, -2.0, math.exp(-0.1)),
        (-0.1, 2.0, math.exp(-0.1)),
        (0.5, 2.0, 1.2),
        (0.5, -2.0, 0.8),
        (-0.5, -2.0, 1.2),
    ],
)
def test_rlsd_by_hand(gain: float, advantage: float, weight: float) -> None:
    """log pi_T - log pi_old = gain, eps_w 0.2, lambda 0.5: B = A (0.5 + 0.5 w), at ratio e^0.05."""
    config = {"name": "rlsd", "mixing_decay": None}
    loss, slope, output = one_token(config, policy=-0.95, behaviour=-1.0, teacher=-1.0 + gain, advantage=advantage)
    expected = -advantage * (0.5 + 0.5 * weight) * math.exp(0.05)
    assert (loss, slope) == pytest.approx((expected, expected))
    assert output.metrics["objective/credit_weight_mean"] == pytest.approx(weight)
    assert output.metrics["objective/credit_clip_fraction"] == (abs(gain) == 0.5)


@pytest.mark.parametrize(
    ("decay", "progress", "mixing"),
    [(1.0, 0.0, 0.4), (1.0, 0.25, 0.3), (1.0, 1.0, 0.0), (0.5, 0.25, 0.2), (0.5, 0.75, 0.0), (None, 0.75, 0.4)],
)
def test_rlsd_share_of_the_weights_decreases_linearly_to_zero(
    decay: float | None, progress: float, mixing: float
) -> None:
    assert RlsdConfig(mixing=0.4, mixing_decay=decay).mixing_at(progress) == pytest.approx(mixing)
    loss, _, _ = one_token(
        {"name": "rlsd", "mixing": 0.4, "mixing_decay": decay}, teacher=5.0, advantage=1.0, progress=progress
    )
    assert loss == pytest.approx(-(1 + 0.2 * mixing))


def test_rlsd_without_weights_equals_grpo_bit_for_bit() -> None:
    assert not RlsdConfig(mixing=0).uses_teacher
    batch = ragged_batch([4, 1, 0, 5], seed=3)
    expected = gradient_of({"name": "grpo"}, batch)["policy"]
    for config in ({"name": "rlsd", "mixing": 0.0}, {"name": "rlsd", "mixing_decay": 0.25}):  # progress is 0.25
        assert torch.equal(gradient_of(config, batch)["policy"], expected)


@settings(max_examples=30, derandomize=True, deadline=None)
@given(teacher=st.floats(-60, 0), behaviour=st.floats(-60, 0), advantage=st.floats(-3, 3), mixing=st.floats(0.01, 1))
def test_rlsd_never_turns_an_update_and_bounds_its_size(
    teacher: float, behaviour: float, advantage: float, mixing: float
) -> None:
    config = {"name": "rlsd", "mixing": mixing, "mixing_decay": None}
    _, slope, _ = one_token(config, policy=behaviour, behaviour=behaviour, teacher=teacher, advantage=advantage)
    assert min(-0.8 * advantage, -1.2 * advantage) - 1e-12 <= slope <= max(-0.8 * advantage, -1.2 * advantage) + 1e-12
    if advantage == 0:
        assert slope == 0


def test_only_rlsd_can_leave_out_responses_with_advantage_zero() -> None:
    assert RlsdConfig().zero_advantage_gives_zero_gradient
    assert not ExopdConfig().zero_advantage_gives_zero_gradient
    assert not EopdConfig().zero_advantage_gives_zero_gradient
    assert [each.ignores_rewards for each in (RlsdConfig(), ExopdConfig(), EopdConfig(), GrpoConfig())] == [
        False,
        True,
        True,
        False,
    ]


def test_reward_of_stale_samples_has_the_current_student() -> None:
    for config in (ExopdConfig(), EopdConfig()):
        assert config.resolved(max_staleness=1).reward_student == "current"
        assert config.resolved(max_staleness=0).reward_student == "behaviour"


@pytest.mark.parametrize(
    ("config", "missing"),
    [
        ({"name": "exopd"}, "needs reference_logprobs, got None"),
        ({"name": "eopd"}, "needs support_logprobs, teacher_support_logprobs, teacher_tail_logprobs"),
    ],
)
def test_error_names_the_missing_column(config: dict[str, Any], missing: str) -> None:
    with pytest.raises(ValueError, match=missing):
        one_token(config)


def test_the_name_alone_changes_the_method_of_a_configuration() -> None:
    """All but `exopd`, which requires a reference in addition, and `grpo`, which refuses a teacher."""
    batch = ragged_batch([4, 1, 0, 5], seed=3)
    found = {}
    for name in ("trrd", "kdrl", "opd", "rlsd", "eopd"):
        objective = load_run_config(SMOKE, [f"objective.name={name}"]).objective
        gradients = gradient_of(objective.model_dump(exclude_unset=True), batch)
        found[name] = torch.cat([gradients["policy"].flatten(), gradients["support"].flatten()])
    exopd = load_run_config(SMOKE, ["objective.name=exopd", "reference={}"]).objective
    found["exopd"] = gradient_of(exopd.model_dump(), batch)["policy"].flatten()
    policies = {name: gradient[: batch.policy.numel()] for name, gradient in found.items() if name != "eopd"}
    names = list(policies)
    assert all(
        (policies[one] - policies[other]).abs().max() > 1e-3
        for at, one in enumerate(names)
        for other in names[at + 1 :]
    )
    # The forward KL of `eopd` acts on the support; on the sampled tokens it is `opd`.
    assert found["eopd"][batch.policy.numel() :].abs().max() > 1e-3
    assert found["opd"][batch.policy.numel() :].abs().max() == 0
