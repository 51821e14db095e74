"""Distillation term of `kdrl` and `opd`: estimates of KL(pi, pi_T) on the student's own responses."""

from __future__ import annotations

import torch
from torch import Tensor

from rlad.config.objectives import Estimator, RewardStudent
from rlad.objectives.divergence import sampled_divergence, support_divergence
from rlad.objectives.metrics import MeanSums, mean_over
from rlad.objectives.objective import LOG_RATIO_LIMIT
from rlad.objectives.ratios import log_ratio_means
from rlad.objectives.tokens import Tokens


def imitation_reward(tokens: Tokens, student: RewardStudent) -> Tensor:
    """Return the reward of each token, which is minus the k1 estimate. It carries no graph.

    The clipped surrogate weights the reward by `pi / pi_old`. Its expected gradient over samples of pi_old is therefore
    that of `-KL(pi, pi_T)` with the student `current`, however old pi_old is. With `behaviour` a pull away from pi_old
    is added to it, that of `KL(pi, pi_old)`, which is 0 only at pi = pi_old (arXiv:2606.24143).

    Args:
        tokens: Tokens in any shape.
        student: `behaviour` (and `auto`) for `log pi_T - log pi_old`, `current` for `log pi_T - log pi`.
    """
    log_student = tokens.policy_logprobs.detach() if student == "current" else tokens.behaviour_logprobs
    return imitated(tokens, teacher_of(tokens) - log_student)


def imitation_loss(tokens: Tokens, estimator: Estimator) -> Tensor:
    """Return the divergence estimate of each token, with graph; 0 for tokens without a distillation term.

    Args:
        tokens: Tokens in any shape.
        estimator: Any estimator except `k1_reward`, which is a reward and not a loss.
    """
    if estimator == "full" and tokens.teacher_divergences is not None:
        return imitated(tokens, tokens.teacher_divergences)
    if estimator in ("topk", "full"):
        policy, teacher = tokens.support_logprobs, tokens.teacher_support_logprobs
        tail = tokens.teacher_tail_logprobs
        assert policy is not None
        assert teacher is not None
        assert tail is not None
        # The support of an invalid token is all 0, which is not a distribution. Its value must be replaced by 0 here,
        # not only weighted by 0 later, so that no gradient flows through it.
        return imitated(tokens, support_divergence(policy, teacher, tail))
    assert estimator in ("k2", "k3")
    return imitated(
        tokens,
        sampled_divergence(
            tokens.policy_logprobs - teacher_of(tokens), "k2" if estimator == "k2" else "k3", LOG_RATIO_LIMIT
        ),
    )


def imitated(tokens: Tokens, values: Tensor) -> Tensor:
    """Return `values` for tokens with a distillation term and 0 for all others."""
    return values.where(tokens.is_valid if tokens.is_imitated is None else tokens.is_imitated, 0)


def teacher_of(tokens: Tokens) -> Tensor:
    """Return the teacher's log-probabilities, which `Needs` guarantees."""
    assert tokens.teacher_logprobs is not None
    return tokens.teacher_logprobs


@torch.no_grad()
def imitation_means(tokens: Tokens, divergence: Tensor) -> dict[str, MeanSums]:
    """Return metric sums: divergence over imitated tokens, their fraction, and the log ratio to the teacher."""
    selection = tokens.is_valid if tokens.is_imitated is None else tokens.is_imitated
    return {
        "objective/teacher_kl": mean_over(divergence, selection),
        "objective/imitated_fraction": mean_over(selection.to(divergence.dtype), tokens.is_valid),
        **log_ratio_means("teacher", tokens.policy_logprobs - teacher_of(tokens), tokens.is_valid),
    }
