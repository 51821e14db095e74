"""TRRD, the objective of RLAD: the clipped surrogate of a ratio anchored to both the behaviour policy and the teacher."""

from __future__ import annotations

import torch
from torch import Tensor

from rlad.config.objectives import TrrdConfig
from rlad.objectives.metrics import MeanSums, mean_over
from rlad.objectives.objective import Objective, TokenLosses
from rlad.objectives.ratios import clamped_teacher_log_ratio, log_ratio_means, surrogate_losses
from rlad.objectives.tokens import Tokens


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
