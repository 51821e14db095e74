"""Likelihood ratios of sampled tokens, and the clipped surrogate over them. Elementwise, any shape, float32 or float64."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from rlad.config.objectives import ClippedSurrogateSettings, TeacherClampGradient
from rlad.objectives.metrics import MeanSums, mean_over
from rlad.objectives.objective import LOG_RATIO_LIMIT, TokenLosses
from rlad.objectives.tokens import Tokens


class ClippedSurrogate(NamedTuple):
    """`values` to maximise, with graph; `is_clipped`: the clip decides the value, so the token gives no gradient."""

    values: Tensor
    is_clipped: Tensor


def clamped_teacher_log_ratio(log_ratio: Tensor, limit: float, gradient: TeacherClampGradient) -> Tensor:
    """`clamp(log pi - log pi_T, -limit, limit)` (arXiv:2602.22495, App. B).

    Args:
        gradient: outside the limits, `clipped` gives none (the plain clamp of the paper); `straight_through` clamps the value only.
    """
    clamped = log_ratio.clamp(-limit, limit)
    if gradient == "clipped":
        return clamped
    # The second term is exactly 0, so the value is the clamped one to the bit.
    return clamped.detach() + (log_ratio - log_ratio.detach())


def clipped_surrogate(log_ratio: Tensor, advantages: Tensor, settings: ClippedSurrogateSettings) -> ClippedSurrogate:
    """`min(r A, clip(r, 1 - eps_low, 1 + eps_high) A)` (arXiv:2602.22495, Eq. 1 and 5), at least `dual_clip A` where A < 0.

    Where A is 0, value and gradient are exactly 0 however large the log ratio. Beyond `LOG_RATIO_LIMIT` the value is that at the limit.
    """
    # Before exp: behind it, the backward pass would multiply 0 by an infinite ratio.
    ratio = bounded_ratio(log_ratio.where(advantages != 0, 0))
    unclipped = ratio * advantages
    clipped = ratio.clamp(1 - settings.eps_low, 1 + settings.eps_high) * advantages
    values, is_clipped = torch.minimum(unclipped, clipped), clipped.detach() < unclipped.detach()
    if settings.dual_clip is not None:
        bound = settings.dual_clip * advantages
        is_bounded = (advantages < 0) & (values.detach() < bound)
        values, is_clipped = values.where(~is_bounded, bound), is_clipped | is_bounded
    return ClippedSurrogate(values=values, is_clipped=is_clipped)


def surrogate_losses(
    tokens: Tokens, log_ratio: Tensor, settings: ClippedSurrogateSettings, *, advantages: Tensor | None = None
) -> TokenLosses:
    """The clipped surrogate as a loss, corrected for the engine's mismatch where that is on.

    Args:
        advantages: of each token, in place of the batch's.
    """
    surrogate = clipped_surrogate(log_ratio, tokens.advantages if advantages is None else advantages, settings)
    means = _surrogate_means(tokens, log_ratio, surrogate.is_clipped)
    if tokens.sampler_logprobs is None:
        return TokenLosses(losses=-surrogate.values, means=means)
    mismatch = bounded_ratio(tokens.behaviour_logprobs - tokens.sampler_logprobs)
    weights, cut = mismatch_weights(mismatch, settings)
    means |= {
        "objective/mismatch_mean": mean_over(mismatch, tokens.is_valid),
        "objective/mismatch_cut_fraction": mean_over(cut, tokens.is_valid),
    }
    return TokenLosses(losses=-surrogate.values * weights, means=means)


def mismatch_weights(mismatch: Tensor, settings: ClippedSurrogateSettings) -> tuple[Tensor, Tensor]:
    """What the surrogate is multiplied by, and where the cap decided it.

    Args:
        mismatch: w, the learner's probability of a token over the engine's, under the same weights.
    """
    if settings.mismatch == "truncate":
        return mismatch.clamp(max=settings.mismatch_cap), mismatch > settings.mismatch_cap
    is_cut = (mismatch > settings.mismatch_cap) | (mismatch < 1 / settings.mismatch_cap)
    return mismatch.where(~is_cut, 0), is_cut


def bounded_ratio(log_ratio: Tensor) -> Tensor:
    """`exp(log_ratio)`, with the exponent held within +-`LOG_RATIO_LIMIT`."""
    return log_ratio.clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT).exp()


@torch.no_grad()
def log_ratio_means(name: str, log_ratio: Tensor, is_valid: Tensor) -> dict[str, MeanSums]:
    """Sums behind the mean and the mean magnitude of a log ratio, in nats."""
    return {
        f"objective/log_ratio_{name}_mean": mean_over(log_ratio, is_valid),
        f"objective/log_ratio_{name}_abs_mean": mean_over(log_ratio.abs(), is_valid),
    }


@torch.no_grad()
def _surrogate_means(tokens: Tokens, log_ratio: Tensor, is_clipped: Tensor) -> dict[str, MeanSums]:
    """Clip fractions, also by sign of the advantage; the ratio; log(pi / pi_old)."""
    valid = tokens.is_valid
    positive, negative = valid & (tokens.advantages > 0), valid & (tokens.advantages < 0)
    return {
        "objective/clip_fraction": mean_over(is_clipped, valid),
        "objective/clip_fraction_positive": mean_over(is_clipped, positive),
        "objective/clip_fraction_negative": mean_over(is_clipped, negative),
        "objective/ratio_mean": mean_over(bounded_ratio(log_ratio), valid),
        **log_ratio_means("behaviour", tokens.policy_logprobs - tokens.behaviour_logprobs, valid),
    }
