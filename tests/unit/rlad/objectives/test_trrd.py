"""TRRD equals hand-computed values and a slow reference, and has the properties of the method."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rlad.objectives import TrrdConfig, build_objective
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


@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.5, 0.9])
@pytest.mark.parametrize("anchor", [{"teacher_log_ratio_clamp": "auto"}, {"anchor": "agreeing"}], ids=str)
def test_anchor_that_cannot_clip_at_the_behaviour_policy(alpha: float, anchor: dict[str, Any]) -> None:
    """Under the paper's clamp, the two tokens with alpha below 0.753 have no gradient."""
    for advantage, gap in ((1.0, -9.0), (-1.0, 9.0)):
        _, paper = one_token(to_behaviour=0.0, teacher_gap=gap, advantage=advantage, alpha=alpha)
        _, found = one_token(to_behaviour=0.0, teacher_gap=gap, advantage=advantage, alpha=alpha, **anchor)
        assert (paper != 0) == (alpha > 0.8)
        assert found * advantage < 0 or alpha == 0  # alpha 0 has no gradient outside the clamp


def test_automatic_clamp_by_hand() -> None:
    """alpha 0.5: [2 ln 0.8, 2 ln 1.28] * 0.9 = [-0.4017, 0.4443]; a tenth of the clip range is left to the update.

    At the upper bound, log r = 0.5 x + 0.2222 for log(pi / pi_old) = x, so the clip is at x = 0.2 ln 1.28 = 0.0494.
    """
    low, high = TrrdConfig(teacher_log_ratio_clamp="auto").clamp_bounds
    assert (low, high) == pytest.approx((-0.4017, 0.4443), abs=5e-5)
    auto = {"teacher_gap": -3.0, "advantage": 1.0, "teacher_log_ratio_clamp": "auto"}
    assert one_token(to_behaviour=0.0493, **auto)[1] == pytest.approx(
        -0.5 * math.exp(0.5 * 0.0493 + 0.9 * 0.24686), 1e-4
    )
    assert one_token(to_behaviour=0.0494, **auto)[1] == 0.0
    # At the lower bound, with A < 0: log r = 0.5 x - 0.2008, and the clip is at x = 0.2 ln 0.8 = -0.0446.
    auto = {"teacher_gap": 3.0, "advantage": -1.0, "teacher_log_ratio_clamp": "auto"}
    assert one_token(to_behaviour=-0.0446, **auto)[1] == pytest.approx(0.5 * 0.8, rel=1e-4)
    assert one_token(to_behaviour=-0.0447, **auto)[1] == 0.0


@pytest.mark.parametrize(
    ("settings", "can_veto"),
    [
        ({}, True),
        ({"teacher_log_ratio_clamp": 0.44}, False),  # 0.5 * 0.44 = 0.22 is below 0.2231 and 0.2469
        ({"teacher_log_ratio_clamp": 0.45}, True),  # 0.225 is above the first
        ({"teacher_log_ratio_clamp": 0.45, "eps_low": 0.28, "eps_high": 0.2}, True),  # 0.225 is above ln 1.2 = 0.182
        ({"teacher_log_ratio_clamp": 0.36, "eps_low": 0.28, "eps_high": 0.2}, False),
        ({"alpha": 0.77}, True),
        ({"alpha": 0.78}, False),
        ({"alpha": 1.0}, False),
        ({"teacher_log_ratio_clamp": "auto"}, False),
        ({"anchor": "agreeing"}, False),
    ],
    ids=str,
)
def test_settings_know_whether_the_anchor_alone_can_clip(settings: dict[str, Any], can_veto: bool) -> None:
    assert TrrdConfig(**settings).can_veto == can_veto


def test_agreeing_anchor_is_the_teachers_where_it_agrees_and_grpos_elsewhere() -> None:
    """log(pi / pi_old) = 0.1. Agreement: log r = 0.05 + 0.5 (0.1 - gap). Otherwise log r = 0.1."""
    for gap, advantage in ((0.5, 2.0), (-0.5, -2.0)):
        expected = -advantage * math.exp(0.05 + 0.5 * (0.1 - gap))
        assert one_token(to_behaviour=0.1, teacher_gap=gap, advantage=advantage, anchor="agreeing") == pytest.approx(
            (expected, expected)
        )
    for gap, advantage in ((-0.5, 2.0), (0.5, -2.0)):
        expected = -advantage * math.exp(0.1)
        assert one_token(to_behaviour=0.1, teacher_gap=gap, advantage=advantage, anchor="agreeing") == pytest.approx(
            (expected, expected)
        )


def test_expected_update_imitates_under_the_papers_clamp_and_not_under_the_automatic_one() -> None:
    """The student gives the right token 0.7 and the wrong one 0.3, the teacher 0.03 and 0.97.

    The rest of the response decides A: 1 or -1, equally often, for either token. GRPO's expected update is then 0. The
    paper's clamp vetoes A = 1 for the right token (log r = 0.5 > ln 1.28) and A = -1 for the wrong one (log r = -0.5 <
    ln 0.8), so descent lowers the right token and raises the wrong one.
    """

    def expected_slope(student: float, teacher: float, **config: Any) -> float:
        gap = math.log(teacher / student)
        return sum(
            one_token(to_behaviour=0.0, teacher_gap=gap, advantage=advantage, **config)[1] for advantage in (1.0, -1.0)
        )

    assert expected_slope(0.7, 0.03) == pytest.approx(0.5 * math.exp(0.5))
    assert expected_slope(0.3, 0.97) == pytest.approx(-0.5 * math.exp(-0.5))
    for config in ({"teacher_log_ratio_clamp": "auto"}, {"alpha": 1.0}, {"alpha": 0.8}):
        assert expected_slope(0.7, 0.03, **config) == pytest.approx(0.0, abs=1e-15)
        assert expected_slope(0.3, 0.97, **config) == pytest.approx(0.0, abs=1e-15)


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
    values = clamped_teacher_log_ratio(log_ratio, (-0.3, 0.3), "straight_through")
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
