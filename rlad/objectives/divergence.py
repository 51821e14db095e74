"""Per-token estimates of the KL divergence of the student from another model.

All functions are elementwise, for any shape, in float32 or float64. For tokens sampled from the student, with
`d = log pi - log q` (Schulman, "Approximating KL Divergence", 2020):

| estimator | value | d value / d log pi | expected gradient |
| --- | --- | --- | --- |
| k1 | d | 1 | 0 for every q; useful only as a reward, where it yields the gradient of KL(pi, q) |
| k2 | d^2 / 2 | d | the gradient of KL(pi, q) |
| k3 | exp(-d) - 1 + d | 1 - exp(-d) | the gradient of KL(q, pi) |

These expectations are per token: over the next token at a fixed prefix, sampled from pi itself. The effect of a token
on later prefixes is not part of them, and tokens of an older policy do not have them.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from rlad.config.objectives import SampledEstimator

_SMALLEST_MASS = 2.0**-24
"""Half the spacing of float32 below 1. `1 - sum` cannot distinguish a tail with less mass from an empty tail."""


def sampled_divergence(log_ratio: Tensor, estimator: SampledEstimator, limit: float) -> Tensor:
    """Return the `k2` or `k3` estimate of each token.

    Args:
        log_ratio: `d = log pi - log q` in nats, any shape.
        estimator: `k2` or `k3`.
        limit: Bound on `d` in the term `exp(-d)` of k3. Beyond the bound, that term has no gradient.

    Returns:
        Estimates in nats, in the shape of `log_ratio`.
    """
    if estimator == "k2":
        return 0.5 * log_ratio.square()
    return torch.expm1((-log_ratio).clamp(-limit, limit)) + log_ratio


def support_divergence(policy: Tensor, teacher: Tensor, teacher_tail: Tensor) -> Tensor:
    """Return `KL(pi, q)` over K selected tokens and one bucket for all other tokens.

    The value is exact if the support is the whole vocabulary, and otherwise a lower bound that grows with the coverage
    of the support. The gradient is that of the value, for any distribution of the sampled tokens.

    Args:
        policy: Student log-probabilities of the support, [..., K], with graph.
        teacher: Teacher log-probabilities `log q` of the support, [..., K].
        teacher_tail: Log of the teacher's mass outside the support, [...]; -inf if the support is the whole vocabulary.

    Returns:
        Divergences in nats, [...].
    """
    inside = (policy.exp() * (policy - teacher)).sum(dim=-1)
    mass = (-torch.expm1(torch.logsumexp(policy, dim=-1).clamp(max=0))).clamp(min=_SMALLEST_MASS)
    has_tail = teacher_tail > -math.inf
    tail = teacher_tail.where(has_tail, 0).clamp(min=math.log(_SMALLEST_MASS))
    return inside + (mass * (mass.log() - tail)).where(has_tail, 0)


def forward_divergence(policy: Tensor, teacher: Tensor) -> Tensor:
    """Return the part of `KL(q, pi)` on K selected tokens: `sum_k q_k (log q_k - log pi_k)`.

    The tokens outside the support are left out, so the value is not a divergence: it is negative where the student puts
    more mass on the support than the teacher. Its gradient in `log pi_k` is `-q_k`.

    Args:
        policy: Student log-probabilities of the support, [..., K], with graph.
        teacher: Teacher log-probabilities `log q` of the support, [..., K].

    Returns:
        Values in nats, [...].
    """
    return (teacher.exp() * (teacher - policy)).sum(dim=-1)


def support_entropy(teacher: Tensor, teacher_tail: Tensor) -> Tensor:
    """Return the teacher's entropy with all tokens outside its support as one: a lower bound of its entropy.

    Args:
        teacher: Teacher log-probabilities of the support, [..., K].
        teacher_tail: Log of the teacher's mass outside the support, [...]; -inf if the support is the whole vocabulary.

    Returns:
        Entropies in nats, [...].
    """
    tail = teacher_tail.where(teacher_tail > -math.inf, 0)  # log 1: an empty tail contributes 0
    return -(teacher.exp() * teacher).sum(dim=-1) - tail.exp() * tail
