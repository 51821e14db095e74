"""Likelihood ratios of sampled tokens, and their clipped surrogate.

All functions are elementwise, for any shape, in float32 or float64.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from rlad.config.objectives import ClippedSurrogateSettings, TeacherClampGradient
from rlad.objectives.metrics import MeanSums, mean_over
from rlad.objectives.objective import LOG_RATIO_LIMIT, TokenLosses
from rlad.objectives.tokens import Tokens


class ClippedSurrogate(NamedTuple):
    """Clipped surrogate of each token.

    Attributes:
        values: Surrogate to maximize, with graph.
        is_clipped: True where the clip determines the value, so the token gets no gradient.
    """

    values: Tensor
    is_clipped: Tensor


def clamped_teacher_log_ratio(log_ratio: Tensor, bounds: tuple[float, float], gradient: TeacherClampGradient) -> Tensor:
    """Return `clamp(log pi - log pi_T, -c, c)` (arXiv:2602.22495, App. B).

    Args:
        log_ratio: `log pi - log pi_T` in nats, any shape.
        bounds: Lower and upper bound; -c and c in the paper.
        gradient: Gradient outside the bounds. `clipped` is the plain clamp of the paper, with gradient 0.
            `straight_through` clamps only the value, with gradient 1.
    """
    clamped = log_ratio.clamp(*bounds)
    if gradient == "clipped":
        return clamped
    # The second term is exactly 0, so the value equals the clamped one bit for bit.
    return clamped.detach() + (log_ratio - log_ratio.detach())


def clipped_surrogate(log_ratio: Tensor, advantages: Tensor, settings: ClippedSurrogateSettings) -> ClippedSurrogate:
    """Return `min(r A, clip(r, 1 - eps_low, 1 + eps_high) A)` of each token (arXiv:2602.22495, Eq. 1 and 4).

    With `dual_clip`, the value is at least `dual_clip A` for A < 0 (arXiv:1912.09729). For A = 0, value and gradient
    are exactly 0 at any log ratio. Beyond `LOG_RATIO_LIMIT` the value is that at the limit.

    Args:
        log_ratio: `log r` in nats, any shape.
        advantages: A of each token, in the same shape.
        settings: Clip range and dual clip.
    """
    # Mask before exp. Masking after it would multiply 0 by an infinite ratio in the backward pass.
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
    """Return the negated clipped surrogate as token losses, with the correction of the sampler mismatch if configured.

    Args:
        tokens: Tokens in any shape.
        log_ratio: `log r` in nats, in the same shape.
        settings: Settings of the surrogate.
        advantages: Advantages that replace `tokens.advantages`; None keeps those.
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
    """Return the factors of the surrogate, and where a bound determines them.

    Args:
        mismatch: w, the learner's probability of a token divided by the sampling engine's, under the same weights.
        settings: Kind of correction (`truncate` or `mask`) and its bounds.
    """
    if settings.mismatch == "truncate":
        return mismatch.clamp(max=settings.mismatch_cap), mismatch > settings.mismatch_cap
    floor, cap = settings.mismatch_bounds
    is_cut = (mismatch > cap) | (mismatch < floor)
    return mismatch.where(~is_cut, 0), is_cut


def bounded_ratio(log_ratio: Tensor) -> Tensor:
    """Return `exp(log_ratio)` with the exponent clamped to +-`LOG_RATIO_LIMIT`."""
    return log_ratio.clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT).exp()


@torch.no_grad()
def log_ratio_means(name: str, log_ratio: Tensor, is_valid: Tensor) -> dict[str, MeanSums]:
    """Return metric sums of the mean and the mean absolute value of a log ratio, in nats."""
    return {
        f"objective/log_ratio_{name}_mean": mean_over(log_ratio, is_valid),
        f"objective/log_ratio_{name}_abs_mean": mean_over(log_ratio.abs(), is_valid),
    }


@torch.no_grad()
def _surrogate_means(tokens: Tokens, log_ratio: Tensor, is_clipped: Tensor) -> dict[str, MeanSums]:
    """Return metric sums of clip fractions (also by sign of the advantage), of the ratio, and of log(pi / pi_old)."""
    valid = tokens.is_valid
    positive, negative = valid & (tokens.advantages > 0), valid & (tokens.advantages < 0)
    return {
        "objective/clip_fraction": mean_over(is_clipped, valid),
        "objective/clip_fraction_positive": mean_over(is_clipped, positive),
        "objective/clip_fraction_negative": mean_over(is_clipped, negative),
        "objective/ratio_mean": mean_over(bounded_ratio(log_ratio), valid),
        **log_ratio_means("behaviour", tokens.policy_logprobs - tokens.behaviour_logprobs, valid),
    }
