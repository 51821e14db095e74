"""GRPO equals hand-computed values and the slow reference."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rlad.objectives import build_objective

from .slow_reference import Settings, ragged_batch, slow_loss_and_gradient


@settings(max_examples=40, derandomize=True, deadline=None)
@given(st.lists(st.integers(0, 7), min_size=1, max_size=6), st.integers(0, 2**31 - 1))
def test_loss_and_gradient_equal_the_slow_implementation(lengths: list[int], seed: int) -> None:
    batch = ragged_batch(lengths, seed)
    policy = batch.policy.clone().requires_grad_()
    loss = build_objective({"name": "grpo"})(**batch.arguments(policy=policy, with_teacher=False)).loss
    loss.backward()
    expected_loss, expected_gradient = slow_loss_and_gradient(batch, Settings(alpha=1.0))
    assert loss.item() == pytest.approx(expected_loss, rel=1e-12, abs=1e-14)
    torch.testing.assert_close(policy.grad, expected_gradient, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(
    ("log_ratio", "advantage", "value", "slope"),
    [
        (0.0, 2.0, 2.0, 2.0),
        (0.2, 1.0, math.exp(0.2), math.exp(0.2)),
        (0.3, 1.0, 1.28, 0.0),  # e^0.3 = 1.35 is above the range with A > 0: clipped
        (0.3, -1.0, -math.exp(0.3), -math.exp(0.3)),  # above the range with A < 0: not clipped
        (-0.3, 1.0, math.exp(-0.3), math.exp(-0.3)),  # e^-0.3 = 0.74 is below the range with A > 0: not clipped
        (-0.3, -1.0, -0.8, 0.0),
        (0.3, 0.0, 0.0, 0.0),
    ],
)
def test_one_token_by_hand(log_ratio: float, advantage: float, value: float, slope: float) -> None:
    policy = torch.tensor([[log_ratio - 1.0]], dtype=torch.float64, requires_grad=True)
    output = build_objective({"name": "grpo"})(
        policy_logprobs=policy,
        behaviour_logprobs=torch.tensor([[-1.0]], dtype=torch.float64),
        advantages=torch.tensor([advantage], dtype=torch.float64),
        mask=torch.ones(1, 1),
    )
    output.loss.backward()
    assert (output.loss.item(), policy.grad.item()) == pytest.approx((-value, -slope))


def test_mean_over_responses_of_means_over_tokens() -> None:
    """At r = 1 a token's loss is -A: ((-3) + (-1) * (4 tokens / 4)) / 2, for any lengths."""
    batch_mask = torch.tensor([[1, 0, 0, 0], [1, 1, 1, 1]])
    logprobs = torch.zeros(2, 4, requires_grad=True)
    output = build_objective({"name": "grpo"})(
        policy_logprobs=logprobs,
        behaviour_logprobs=torch.zeros(2, 4),
        advantages=torch.tensor([3.0, 1.0]),
        mask=batch_mask,
    )
    output.loss.backward()
    assert output.loss.item() == -2.0
    assert logprobs.grad.tolist() == [[-1.5, 0, 0, 0], [-0.125, -0.125, -0.125, -0.125]]


def test_behaviour_policy_and_advantages_get_no_gradient() -> None:
    batch = ragged_batch([3, 2], seed=0)
    behaviour, advantages = batch.behaviour.clone().requires_grad_(), batch.advantages.clone().requires_grad_()
    policy = batch.policy.clone().requires_grad_()
    loss = build_objective({"name": "grpo"})(
        policy_logprobs=policy, behaviour_logprobs=behaviour, advantages=advantages, mask=batch.mask
    ).loss
    loss.backward()
    assert behaviour.grad is None
    assert advantages.grad is None
