"""TRRD equals hand-computed values and a slow reference, and has the properties of the method."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rlad.objectives import build_objective
from rlad.objectives.ratios import clamped_teacher_log_ratio

from .slow_reference import Padded, Settings, ragged_batch, slow_loss_and_gradient

RAGGED = st.lists(st.integers(0, 7), min_size=1, max_size=6)
SEEDS = st.integers(0, 2**31 - 1)
ALPHAS = st.sampled_from([0.0, 0.1, 0.5, 0.9, 1.0])
GRADIENTS = st.sampled_from(["clipped", "straight_through"])
quick = settings(max_examples=40, derandomize=True, deadline=None)


def loss_and_gradient(config: dict[str, Any], batch: Padded, *, with_teacher: bool = True) -> tuple[Tensor, Tensor]:
    policy = batch.policy.clone().requires_grad_()
    loss = build_objective(config)(**batch.arguments(policy=policy, with_teacher=with_teacher)).loss
    loss.backward()
    assert policy.grad is not None
    return loss.detach(), policy.grad


def one_token(*, to_behaviour: float, teacher_gap: float, advantage: float, **config: Any) -> tuple[float, float]:
    """Return loss and gradient of one token, from log(pi / pi_old) and log(pi_T / pi_old)."""
    behaviour = torch.tensor([[-3.0]], dtype=torch.float64)
    batch = Padded(
        policy=behaviour + to_behaviour,
        behaviour=behaviour,
        teacher=behaviour + teacher_gap,
        advantages=torch.tensor([advantage], dtype=torch.float64),
        mask=torch.ones(1, 1, dtype=torch.bool),
    )
    loss, gradient = loss_and_gradient({"name": "trrd", **config}, batch)
    return loss.item(), gradient.item()


@quick
@given(RAGGED, SEEDS, ALPHAS, GRADIENTS)
def test_loss_and_gradient_equal_the_slow_implementation(
    lengths: list[int], seed: int, alpha: float, clamp_gradient: str
) -> None:
    batch = ragged_batch(lengths, seed)
    config = {"name": "trrd", "alpha": alpha, "teacher_clamp_gradient": clamp_gradient}
    loss, gradient = loss_and_gradient(config, batch)
    expected_loss, expected_gradient = slow_loss_and_gradient(
        batch, Settings(alpha=alpha, straight_through=clamp_gradient == "straight_through")
    )
    assert loss.item() == pytest.approx(expected_loss, rel=1e-12, abs=1e-14)
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-12, atol=1e-14)


def test_all_settings_reach_the_loss() -> None:
    batch = ragged_batch([5, 3, 7], seed=1, spread=1.0)
    config = {"name": "trrd", "alpha": 0.3, "teacher_log_ratio_clamp": 0.4, "eps_low": 0.05, "eps_high": 0.6}
    loss, gradient = loss_and_gradient(config, batch)
    expected_loss, expected_gradient = slow_loss_and_gradient(
        batch, Settings(alpha=0.3, clamp=0.4, eps_low=0.05, eps_high=0.6)
    )
    assert loss.item() == pytest.approx(expected_loss, rel=1e-12)
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-12, atol=0)


def test_gradient_is_the_finite_difference_of_the_loss() -> None:
    batch = ragged_batch([4, 1, 6], seed=3)
    objective = build_objective({"name": "trrd"})
    _, gradient = loss_and_gradient({"name": "trrd"}, batch)
    step = 1e-6
    for i, t in [(i, t) for i in range(3) for t in range(6)]:
        shift = torch.zeros_like(batch.policy)
        shift[i, t] = step
        above = objective(**batch.arguments(policy=batch.policy + shift)).loss
        below = objective(**batch.arguments(policy=batch.policy - shift)).loss
        assert gradient[i, t].item() == pytest.approx((above - below).item() / (2 * step), abs=1e-8)


def test_one_token_by_hand() -> None:
    # log r = 0.5 * 0.2 + 0.5 * (0.2 - 0.4) = 0, so r = 1: loss -A, gradient -A.
    assert one_token(to_behaviour=0.2, teacher_gap=0.4, advantage=1.5) == pytest.approx((-1.5, -1.5))
    # log r = 0.5 * 0.1 + 0.5 * (0.1 - 0.3) = -0.05.
    assert one_token(to_behaviour=0.1, teacher_gap=0.3, advantage=2.0) == pytest.approx(
        (-2 * math.exp(-0.05), -2 * math.exp(-0.05))
    )


@quick
@given(RAGGED, SEEDS, st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64]))
def test_alpha_one_is_grpo_bit_for_bit(lengths: list[int], seed: int, dtype: torch.dtype) -> None:
    exact = ragged_batch(lengths, seed)
    teacher = exact.teacher.masked_fill(
        torch.rand(exact.teacher.shape, generator=torch.Generator().manual_seed(seed)) < 0.5, math.nan
    )
    columns = {
        "behaviour": exact.behaviour.to(dtype),
        "teacher": teacher.to(dtype),
        "advantages": exact.advantages.to(dtype),
        "mask": exact.mask,
    }
    batch = Padded(policy=exact.policy.to(dtype), **columns)
    grpo_loss, grpo_gradient = loss_and_gradient({"name": "grpo"}, batch, with_teacher=False)
    for with_teacher in (True, False):
        loss, gradient = loss_and_gradient({"name": "trrd", "alpha": 1.0}, batch, with_teacher=with_teacher)
        assert torch.equal(loss, grpo_loss)
        assert torch.equal(gradient, grpo_gradient)


@quick
@given(RAGGED, SEEDS, ALPHAS, GRADIENTS)
def test_teacher_equal_to_the_behaviour_policy_gives_grpo_within_the_clamp(
    lengths: list[int], seed: int, alpha: float, clamp_gradient: str
) -> None:
    drawn = ragged_batch(lengths, seed)
    policy = drawn.behaviour + (drawn.policy - drawn.behaviour).clamp(-0.99, 0.99)
    batch = Padded(
        policy=policy, behaviour=drawn.behaviour, teacher=drawn.behaviour, advantages=drawn.advantages, mask=drawn.mask
    )
    loss, gradient = loss_and_gradient(
        {"name": "trrd", "alpha": alpha, "teacher_clamp_gradient": clamp_gradient}, batch
    )
    grpo_loss, grpo_gradient = loss_and_gradient({"name": "grpo"}, batch)
    torch.testing.assert_close(loss, grpo_loss, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(gradient, grpo_gradient, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(
    ("advantage", "alpha", "teacher_gap", "clip_point"),
    [
        (1.0, 1.0, 0.0, 0.247),
        (1.0, 0.5, 0.0, 0.247),
        (1.0, 0.5, 0.5, 0.497),
        (1.0, 0.5, 1.0, 0.747),
        (1.0, 0.5, -0.5, -0.003),
        (-1.0, 1.0, 0.0, -0.223),
        (-1.0, 0.5, 0.5, 0.027),
    ],
)
def test_teacher_moves_the_clip_point(advantage: float, alpha: float, teacher_gap: float, clip_point: float) -> None:
    """Bisection finds the log(pi / pi_old) at which the gradient vanishes; expected values to three decimals."""
    trains, clipped = (-2.0, 2.0) if advantage > 0 else (2.0, -2.0)
    while abs(trains - clipped) > 1e-9:
        middle = (trains + clipped) / 2
        _, gradient = one_token(to_behaviour=middle, teacher_gap=teacher_gap, advantage=advantage, alpha=alpha)
        trains, clipped = (middle, clipped) if gradient != 0 else (trains, middle)
    assert round(trains, 3) == clip_point


def test_token_that_the_teacher_prefers_is_hardly_pushed_down() -> None:
    """At pi = pi_old with A < 0, GRPO has a gradient; a teacher that prefers the token by half a nat clips it."""
    assert one_token(to_behaviour=0.0, teacher_gap=0.5, advantage=-1.0, alpha=1.0)[1] == pytest.approx(1.0)
    assert one_token(to_behaviour=0.0, teacher_gap=0.5, advantage=-1.0, alpha=0.5)[1] == 0.0


@pytest.mark.parametrize(
    ("advantage", "teacher_gap", "clips_below"),
    [(1.0, -5.0, 1 - math.log(1.28)), (-1.0, 5.0, 1 + math.log(0.8))],  # 0.753 and 0.777
)
def test_tokens_are_clipped_at_the_behaviour_policy_only_below_a_threshold_of_alpha(
    advantage: float, teacher_gap: float, clips_below: float
) -> None:
    _, just_below = one_token(to_behaviour=0.0, teacher_gap=teacher_gap, advantage=advantage, alpha=clips_below - 1e-6)
    _, just_above = one_token(to_behaviour=0.0, teacher_gap=teacher_gap, advantage=advantage, alpha=clips_below + 1e-6)
    assert just_below == 0.0
    assert just_above != 0.0


@pytest.mark.parametrize("teacher_gap", [1.6, -1.6])
def test_clamp_gradient_outside_the_clamp(teacher_gap: float) -> None:
    """Values are equal; d log r / d log pi is alpha for the plain clamp and 1 for straight-through.

    The sign of A is chosen so that the token is not clipped.
    """
    advantage = 1.0 if teacher_gap > 0 else -1.0
    log_ratio = 0.3 * 0.1 + 0.7 * (-1.0 if teacher_gap > 0 else 1.0)
    value = -advantage * math.exp(log_ratio)
    token = {"to_behaviour": 0.1, "teacher_gap": teacher_gap, "advantage": advantage, "alpha": 0.3}
    assert one_token(**token) == pytest.approx((value, 0.3 * value))
    assert one_token(**token, teacher_clamp_gradient="clipped") == pytest.approx((value, 0.3 * value))
    assert one_token(**token, teacher_clamp_gradient="straight_through") == pytest.approx((value, value))


def test_gradient_inside_the_clamp_is_one_for_both_options() -> None:
    token = {"to_behaviour": 0.1, "teacher_gap": 0.6, "advantage": 1.0, "alpha": 0.3}
    expected = -math.exp(0.3 * 0.1 + 0.7 * -0.5)
    for clamp_gradient in ("clipped", "straight_through"):
        assert one_token(**token, teacher_clamp_gradient=clamp_gradient) == pytest.approx((expected, expected))


def test_straight_through_value_equals_the_clamped_value_bit_for_bit() -> None:
    """Uses c = 0.3, where `x + (clamp(x) - x)` would be rounded."""
    batch = ragged_batch([9] * 100, seed=5, spread=30.0)
    log_ratio = (batch.policy - batch.teacher).float()
    values = clamped_teacher_log_ratio(log_ratio, 0.3, "straight_through")
    assert torch.equal(values, log_ratio.clamp(-0.3, 0.3))
    assert not torch.equal(log_ratio + (log_ratio.clamp(-0.3, 0.3) - log_ratio), values)


@quick
@given(RAGGED, SEEDS, ALPHAS, GRADIENTS)
def test_teacher_never_flips_the_sign_of_a_single_tokens_update(
    lengths: list[int], seed: int, alpha: float, clamp_gradient: str
) -> None:
    batch = ragged_batch(lengths, seed, spread=2.0)
    _, gradient = loss_and_gradient({"name": "trrd", "alpha": alpha, "teacher_clamp_gradient": clamp_gradient}, batch)
    assert (gradient * batch.advantages[:, None] <= 0).all()


def test_ratio_is_not_one_at_the_behaviour_policy() -> None:
    """alpha 0.5, teacher gaps -1 and +1: r = e^0.5 and e^-0.5, so one of the tokens is clipped in the first step."""
    behaviour = torch.zeros(1, 2, dtype=torch.float64)
    teacher = torch.tensor([[-1.0, 1.0]], dtype=torch.float64)
    advantages = torch.ones(1, dtype=torch.float64)
    batch = Padded(
        policy=behaviour,
        behaviour=behaviour,
        teacher=teacher,
        advantages=advantages,
        mask=torch.ones(1, 2, dtype=torch.bool),
    )
    metrics = build_objective({"name": "trrd"})(**batch.arguments()).metrics
    assert metrics["objective/log_ratio_behaviour_abs_mean"] == 0.0
    assert metrics["objective/ratio_mean"] == pytest.approx((math.exp(0.5) + math.exp(-0.5)) / 2)
    assert metrics["objective/clip_fraction"] == 0.5
