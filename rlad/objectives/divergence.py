"""Estimates of the KL divergence of the student from another model, for one token each. Elementwise, any shape, float32 or float64.

On tokens sampled from the student, with `d = log pi - log q` (Schulman, "Approximating KL Divergence", 2020):

| estimator | value | d value / d log pi | expected gradient |
| --- | --- | --- | --- |
| k1 | d | 1 | 0, whatever q is: of use as a reward only, where it gives that of KL(pi, q) |
| k2 | d^2 / 2 | d | that of KL(pi, q), exactly |
| k3 | exp(-d) - 1 + d | 1 - exp(-d) | that of KL(q, pi) |
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from rlad.config.objectives import SampledEstimator

_SMALLEST_MASS = 2.0**-24
"""Half the spacing of float32 below 1: a tail of less mass than this cannot be told from none by `1 - sum`."""


def sampled_divergence(log_ratio: Tensor, estimator: SampledEstimator, limit: float) -> Tensor:
    """`k2` or `k3` of the table above.

    Args:
        log_ratio: d.
        limit: `exp(-d)` of k3 is taken at d held within +-limit; beyond it that term has no gradient.
    """
    if estimator == "k2":
        return 0.5 * log_ratio.square()
    return torch.expm1((-log_ratio).clamp(-limit, limit)) + log_ratio


def support_divergence(policy: Tensor, teacher: Tensor, teacher_tail: Tensor) -> Tensor:
    """`KL(pi, q)` of the two distributions over K chosen tokens and one bucket for all others.

    Exact where the support is the whole vocabulary; else a lower bound of it, the larger the more the support covers. Its gradient is that of the value,
    whoever sampled the token.

    Args:
        policy: [..., K], log pi of the support's tokens, with graph.
        teacher: [..., K], log q.
        teacher_tail: [...], log of q's mass outside the support; -inf says that the support is the whole vocabulary.

    Returns:
        [...], nats.
    """
    inside = (policy.exp() * (policy - teacher)).sum(dim=-1)
    mass = (-torch.expm1(torch.logsumexp(policy, dim=-1).clamp(max=0))).clamp(min=_SMALLEST_MASS)
    has_tail = teacher_tail > -math.inf
    tail = teacher_tail.where(has_tail, 0).clamp(min=math.log(_SMALLEST_MASS))
    return inside + (mass * (mass.log() - tail)).where(has_tail, 0)
