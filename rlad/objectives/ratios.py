"""Likelihood ratios of sampled tokens, and the clipped surrogate over them. Elementwise, any shape, float32 or float64."""

from __future__ import annotations

from typing import Annotated, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from rlad.objectives.metrics import MeanSums
from rlad.objectives.objective import ObjectiveSettings, Tokens

TeacherClampGradient = Literal["clipped", "straight_through"]

LOG_RATIO_LIMIT = 20.0
"""Log ratios are held within +-20 before exp: e^20 = 4.9e8, finite in float32 in every product with an advantage. Such a token is far outside any
clip range; one still unclipped there (A < 0, ratio above the range) has lost all relation to its sample, and gets no gradient."""


class ClippedSurrogateSettings(ObjectiveSettings):
    """The clip range [1 - eps_low, 1 + eps_high] of the ratio; defaults of arXiv:2602.22495."""

    eps_low: Annotated[float, Field(gt=0, lt=1, description="The ratio is clipped below 1 minus this.")] = 0.20
    eps_high: Annotated[float, Field(gt=0, allow_inf_nan=False, description="The ratio is clipped above 1 plus this.")] = 0.28


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
    """`min(r A, clip(r, 1 - eps_low, 1 + eps_high) A)` (arXiv:2602.22495, Eq. 1 and 5).

    Where A is 0, value and gradient are exactly 0 however large the log ratio. Beyond `LOG_RATIO_LIMIT` the value is that at the limit.
    """
    # Before exp: behind it, the backward pass would multiply 0 by an infinite ratio.
    ratio = bounded_ratio(log_ratio.where(advantages != 0, 0))
    unclipped = ratio * advantages
    clipped = ratio.clamp(1 - settings.eps_low, 1 + settings.eps_high) * advantages
    return ClippedSurrogate(values=torch.minimum(unclipped, clipped), is_clipped=clipped.detach() < unclipped.detach())


def bounded_ratio(log_ratio: Tensor) -> Tensor:
    """`exp(log_ratio)`, with the exponent held within +-`LOG_RATIO_LIMIT`."""
    return log_ratio.clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT).exp()


@torch.no_grad()
def surrogate_means(tokens: Tokens, log_ratio: Tensor, is_clipped: Tensor) -> dict[str, MeanSums]:
    """Sums behind the metrics of a clipped surrogate: clip fractions, also by sign of the advantage; the ratio; log(pi / pi_old)."""
    valid = tokens.is_valid
    positive, negative = valid & (tokens.advantages > 0), valid & (tokens.advantages < 0)
    return {
        "objective/clip_fraction": mean_over(is_clipped, valid),
        "objective/clip_fraction_positive": mean_over(is_clipped, positive),
        "objective/clip_fraction_negative": mean_over(is_clipped, negative),
        "objective/ratio_mean": mean_over(bounded_ratio(log_ratio), valid),
        **log_ratio_means("behaviour", tokens.policy_logprobs - tokens.behaviour_logprobs, valid),
    }


@torch.no_grad()
def log_ratio_means(name: str, log_ratio: Tensor, is_valid: Tensor) -> dict[str, MeanSums]:
    """Sums behind the mean and the mean magnitude of a log ratio, in nats."""
    return {
        f"objective/log_ratio_{name}_mean": mean_over(log_ratio, is_valid),
        f"objective/log_ratio_{name}_abs_mean": mean_over(log_ratio.abs(), is_valid),
    }


@torch.no_grad()
def mean_over(values: Tensor, selection: Tensor) -> MeanSums:
    """Sum (in float64) and number of the selected values."""
    return MeanSums(values.where(selection, 0).sum(dtype=torch.float64), selection.sum())
