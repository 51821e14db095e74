"""The distillation term of `kdrl` and `opd`: the KL divergence of the student from the teacher on the student's own responses, in several estimates."""

from __future__ import annotations

import torch
from torch import Tensor

from rlad.config.objectives import Estimator
from rlad.objectives.divergence import sampled_divergence, support_divergence
from rlad.objectives.metrics import MeanSums, mean_over
from rlad.objectives.objective import LOG_RATIO_LIMIT
from rlad.objectives.ratios import log_ratio_means
from rlad.objectives.tokens import Tokens


def imitation_reward(tokens: Tokens) -> Tensor:
    """`log pi_T - log pi_old` of each token: minus the k1 estimate, as a reward. Constant."""
    return imitated(tokens, teacher_of(tokens) - tokens.behaviour_logprobs)


def imitation_loss(tokens: Tokens, estimator: Estimator) -> Tensor:
    """The estimate of each token, with graph; 0 where a token is not imitated. Not for `k1_reward`."""
    if estimator in ("topk", "full"):
        ours, theirs, tail = tokens.support_logprobs, tokens.teacher_support_logprobs, tokens.teacher_tail_logprobs
        assert ours is not None
        assert theirs is not None
        assert tail is not None
        # An invalid token's support is all 0, no distribution: its value must be 0 and not only masked, so that no gradient comes back through it.
        return imitated(tokens, support_divergence(ours, theirs, tail))
    assert estimator in ("k2", "k3")
    return imitated(
        tokens,
        sampled_divergence(
            tokens.policy_logprobs - teacher_of(tokens), "k2" if estimator == "k2" else "k3", LOG_RATIO_LIMIT
        ),
    )


def imitated(tokens: Tokens, values: Tensor) -> Tensor:
    """`values` where a token has a distillation term, 0 elsewhere."""
    return values.where(tokens.is_valid if tokens.is_imitated is None else tokens.is_imitated, 0)


def teacher_of(tokens: Tokens) -> Tensor:
    assert tokens.teacher_logprobs is not None  # `Needs` asked for it
    return tokens.teacher_logprobs


@torch.no_grad()
def imitation_means(tokens: Tokens, divergence: Tensor) -> dict[str, MeanSums]:
    """Sums behind the mean divergence over imitated tokens, their share, and the log ratio to the teacher."""
    selection = tokens.is_valid if tokens.is_imitated is None else tokens.is_imitated
    return {
        "objective/teacher_kl": mean_over(divergence, selection),
        "objective/imitated_fraction": mean_over(selection.to(divergence.dtype), tokens.is_valid),
        **log_ratio_means("teacher", tokens.policy_logprobs - teacher_of(tokens), tokens.is_valid),
    }
