"""TRRD, the objective of RLAD: the clipped surrogate of a ratio anchored to both the behaviour policy and the teacher."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from rlad.objectives.metrics import MeanSums, mean_over
from rlad.objectives.objective import Objective, TokenLosses
from rlad.objectives.ratios import (
    ClippedSurrogateSettings,
    TeacherClampGradient,
    clamped_teacher_log_ratio,
    log_ratio_means,
    surrogate_losses,
)
from rlad.objectives.tokens import Tokens


class TrrdConfig(ClippedSurrogateSettings):
    """`min(r A, clip(r) A)` with `log r = alpha log(pi / pi_old) + (1 - alpha) clamp(log(pi / pi_T), -c, c)` (arXiv:2602.22495, Eq. 3-5, App. B).

    The teacher scales an update and moves the point where it is clipped; it never turns its sign. With alpha below 1 the ratio is not 1 at
    pi = pi_old: tokens are clipped from the first step, unless alpha is so near 1 that `(1 - alpha) c` stays within the clip range.
    """

    name: Literal["trrd"] = "trrd"
    alpha: Annotated[float, Field(ge=0, le=1, description="Weight of pi_old in the anchor: 1 is GRPO, towards 0 the teacher alone.")] = 0.5
    teacher_log_ratio_clamp: Annotated[float, Field(gt=0, description="c: the log ratio to the teacher is clamped to [-c, c], in nats.")] = 1.0
    teacher_clamp_gradient: Annotated[
        TeacherClampGradient,
        Field(description="Outside the clamp d log r / d log pi is alpha (`clipped`, as in the paper), or 1 (`straight_through`: value only)."),
    ] = "clipped"

    @property
    def uses_teacher(self) -> bool:
        return self.alpha < 1

    def build(self) -> TrrdObjective:
        return TrrdObjective(self)


class TrrdObjective(Objective[TrrdConfig]):
    def token_losses(self, tokens: Tokens) -> TokenLosses:
        own = surrogate_losses(tokens, self._anchored_log_ratio(tokens), self.config)
        return TokenLosses(losses=own.losses, means={**own.means, **self._teacher_means(tokens)})

    def _anchored_log_ratio(self, tokens: Tokens) -> Tensor:
        to_behaviour = tokens.policy_logprobs - tokens.behaviour_logprobs
        # At alpha = 1 there is no teacher term at all, not one of weight 0: that is GRPO bit for bit.
        if tokens.teacher_logprobs is None:
            return to_behaviour
        config = self.config
        to_teacher = tokens.policy_logprobs - tokens.teacher_logprobs
        clamped = clamped_teacher_log_ratio(to_teacher, config.teacher_log_ratio_clamp, config.teacher_clamp_gradient)
        return config.alpha * to_behaviour + (1 - config.alpha) * clamped

    @torch.no_grad()
    def _teacher_means(self, tokens: Tokens) -> dict[str, MeanSums]:
        if tokens.teacher_logprobs is None:
            return {}
        to_teacher = tokens.policy_logprobs - tokens.teacher_logprobs
        is_clamped = to_teacher.abs() > self.config.teacher_log_ratio_clamp
        return {
            **log_ratio_means("teacher", to_teacher, tokens.is_valid),
            "objective/teacher_clamp_fraction": mean_over(is_clamped, tokens.is_valid),
        }
