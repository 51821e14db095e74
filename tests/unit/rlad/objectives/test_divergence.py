"""Estimates of the KL divergence: values by hand, exact expectations over a small vocabulary, and their limits."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from rlad.objectives.divergence import SampledEstimator, sampled_divergence, support_divergence


def distributions(seed: int, size: int = 7) -> tuple[Tensor, Tensor]:
    """Return logits of pi, with graph, and log q."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(size, generator=generator, dtype=torch.float64, requires_grad=True), torch.randn(
        size, generator=generator, dtype=torch.float64
    ).log_softmax(0)


def kl(left: Tensor, right: Tensor) -> Tensor:
    return (left.exp() * (left - right)).sum()


@pytest.mark.parametrize(
    ("log_ratio", "k2", "k3"), [(0.0, 0.0, 0.0), (1.0, 0.5, math.exp(-1)), (-2.0, 2.0, math.exp(2) - 3)]
)
def test_values_by_hand(log_ratio: float, k2: float, k3: float) -> None:
    assert sampled_divergence(torch.tensor(log_ratio, dtype=torch.float64), "k2", 20).item() == pytest.approx(k2)
    assert sampled_divergence(torch.tensor(log_ratio, dtype=torch.float64), "k3", 20).item() == pytest.approx(k3)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("estimator", "is_reverse"), [("k2", True), ("k3", False)])
def test_expected_gradient_over_samples_of_the_policy(estimator: SampledEstimator, is_reverse: bool, seed: int) -> None:
    """k2 has the gradient of KL(pi, q), k3 that of KL(q, pi).

    The expectation is a sum over the vocabulary with the policy's probabilities held fixed.
    """
    logits, q = distributions(seed)
    pi = logits.log_softmax(0)
    expected_value = (pi.detach().exp() * sampled_divergence(pi - q, estimator, 20)).sum()
    (found,) = torch.autograd.grad(expected_value, logits)
    again = logits.log_softmax(0)
    (expected,) = torch.autograd.grad(kl(again, q) if is_reverse else kl(q, again), logits)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


def test_k1_as_a_loss_would_ignore_the_teacher() -> None:
    """The expected gradient of log pi - log q is 0 for every q, which is why k1 is refused as a loss."""
    logits, q = distributions(0)
    pi = logits.log_softmax(0)
    (found,) = torch.autograd.grad((pi.detach().exp() * (pi - q)).sum(), logits)
    assert found.abs().max().item() < 1e-15


@pytest.mark.parametrize("estimator", ["k2", "k3"])
def test_estimates_of_distant_distributions_are_finite(estimator: SampledEstimator) -> None:
    log_ratio = torch.tensor([-200.0, 200.0], requires_grad=True)
    sampled_divergence(log_ratio, estimator, 20).sum().backward()
    assert log_ratio.grad.isfinite().all()


@pytest.mark.parametrize("seed", range(5))
def test_support_of_the_whole_vocabulary_gives_the_exact_divergence(seed: int) -> None:
    logits, q = distributions(seed)
    pi, tail = logits.log_softmax(0), torch.tensor(-math.inf, dtype=torch.float64)
    (found,) = torch.autograd.grad(support_divergence(pi, q, tail), logits)
    again = logits.log_softmax(0)
    assert support_divergence(pi, q, tail).item() == pytest.approx(kl(pi, q).item(), rel=1e-12)
    torch.testing.assert_close(found, torch.autograd.grad(kl(again, q), logits)[0], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("size", [1, 3, 6])
def test_tokens_outside_the_support_form_one_bucket(size: int) -> None:
    """The value is that of the coarser distributions; it grows with the support up to the exact divergence."""
    logits, q = distributions(3)
    pi = logits.log_softmax(0)
    chosen = q.topk(size).indices
    rest = [index for index in range(7) if index not in chosen.tolist()]
    pi_rest, q_rest = (sum(math.exp(column[index].item()) for index in rest) for column in (pi, q))
    by_hand = sum(math.exp(pi[i].item()) * (pi[i] - q[i]).item() for i in chosen.tolist()) + pi_rest * math.log(
        pi_rest / q_rest
    )
    value = support_divergence(pi[chosen], q[chosen], torch.tensor(math.log(q_rest), dtype=torch.float64))
    assert value.item() == pytest.approx(by_hand, rel=1e-12)
    assert 0 <= value.item() <= kl(pi, q).item() + 1e-12
    (gradient,) = torch.autograd.grad(value, logits)
    coarse = torch.stack([*pi.detach()[chosen], torch.tensor(math.log(pi_rest), dtype=torch.float64)])
    assert coarse.exp().sum().item() == pytest.approx(1)
    assert gradient.abs().max().item() > 1e-3


def test_negligible_tail_has_a_finite_value_and_gradient() -> None:
    """In float32, all mass of pi and q is inside the support up to rounding."""
    logits = torch.tensor([0.0, -40.0, -41.0], requires_grad=True)
    pi = logits.log_softmax(0)
    q = torch.tensor([0.0, -60.0])
    value = support_divergence(pi[:2], q, torch.tensor(-60.0))
    value.backward()
    assert value.isfinite()
    assert logits.grad.isfinite().all()


def test_tail_of_the_teacher_has_a_floor() -> None:
    """pi has 0.2 outside the support, q e^-200, which counts as 2^-24: 0.2 (ln 0.2 + 24 ln 2) + 0.8 ln 0.8."""
    pi = torch.tensor([0.8], dtype=torch.float64).log()
    value = support_divergence(pi, torch.zeros(1, dtype=torch.float64), torch.tensor(-200.0, dtype=torch.float64))
    assert value.item() == pytest.approx(0.8 * math.log(0.8) + 0.2 * (math.log(0.2) + 24 * math.log(2)), rel=1e-12)


def test_tail_of_the_student_has_a_floor() -> None:
    """pi has no mass outside the support, q 1/2: the bucket counts 2^-24 (ln 2^-24 - ln 1/2)."""
    value = support_divergence(
        torch.zeros(1, dtype=torch.float64),
        torch.tensor([0.5], dtype=torch.float64).log(),
        torch.tensor(0.5, dtype=torch.float64).log(),
    )
    assert value.item() == pytest.approx(math.log(2) - 2.0**-24 * 23 * math.log(2), rel=1e-13)
