"""Trust Region Ratio Distillation (TRRD), the objective of RLAD."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from rlad.config.objectives import TrrdConfig
from rlad.objectives.metrics import MeanSums, mean_over
from rlad.objectives.objective import Objective, TokenLosses
from rlad.objectives.ratios import (
    clamped_teacher_log_ratio,
    clipped_surrogate,
    log_ratio_means,
    surrogate_losses,
)
from rlad.objectives.tokens import Tokens


class TrrdObjective(Objective[TrrdConfig]):
    """TRRD: the clipped surrogate of a ratio anchored to the behaviour policy and the teacher.

    ```
    loss  = -min(r A, clip(r, 1 - eps_low, 1 + eps_high) A)
    log r = alpha (log pi - log pi_old) + (1 - alpha) clamp(log pi - log pi_T, -c, c)
    ```

    Source: arXiv:2602.22495, Eq. 3 (ratio), Eq. 4 (objective) and App. B (clamp). The loss is per token. `Objective`
    averages it and adds `reference_kl * KL(pi, pi_ref)`.

    For a single token, the sign of A decides the direction of the update. The teacher scales the update and moves the
    clip point: for A > 0, a token that the teacher prefers is clipped later. In expectation over tokens this does not
    hold. With alpha < 1 the ratio is not 1 at pi = pi_old, so tokens can be clipped from the first step: if
    (1 - alpha) c > ln(1 + eps_high), a token that the student prefers far more than the teacher gets no gradient for
    A > 0 but a full gradient for A < 0. If (1 - alpha) c > -ln(1 - eps_low), the reverse holds for tokens that the
    teacher prefers. The expected update with the paper's defaults (alpha 0.5, c 1) is therefore saturating imitation
    with a dead zone, of a strength proportional to E|A|. Nothing is clipped at pi = pi_old if (1 - alpha) c is below
    both thresholds: with alpha >= 0.8 and c = 1 (defaults of eps_low and eps_high), or with clamp `auto`.

    With anchor `agreeing`, only tokens with (log pi_T - log pi_old) A > 0 have this ratio, and the others that of GRPO.
    The rule is fixed by pi_old, so log r is continuous in pi. It is no part of the paper.

    At alpha = 1 the loss equals GRPO bit for bit. Section 4.1 of the paper swaps the endpoints of alpha in one
    sentence; Eq. 3 and App. C are right.
    """

    def token_losses(self, tokens: Tokens) -> TokenLosses:
        """Return the TRRD loss of each token."""
        log_ratio = self._anchored_log_ratio(tokens)
        surrogate = surrogate_losses(tokens, log_ratio, self.config)
        return TokenLosses(losses=surrogate.losses, means={**surrogate.means, **self._teacher_means(tokens, log_ratio)})

    def _anchored_log_ratio(self, tokens: Tokens) -> Tensor:
        """Return `log r` of each token (arXiv:2602.22495, Eq. 3, App. B)."""
        to_behaviour = tokens.policy_logprobs - tokens.behaviour_logprobs
        # At alpha = 1 the teacher term is absent, not weighted by 0, so the loss equals GRPO bit for bit.
        if tokens.teacher_logprobs is None:
            return to_behaviour
        config = self.config
        to_teacher = tokens.policy_logprobs - tokens.teacher_logprobs
        clamped = clamped_teacher_log_ratio(to_teacher, config.clamp_bounds, config.teacher_clamp_gradient)
        log_ratio = config.alpha * to_behaviour + (1 - config.alpha) * clamped
        if config.anchor == "always":
            return log_ratio
        agrees = (tokens.teacher_logprobs - tokens.behaviour_logprobs) * tokens.advantages > 0
        return log_ratio.where(agrees, to_behaviour)

    @torch.no_grad()
    def _teacher_means(self, tokens: Tokens, log_ratio: Tensor) -> dict[str, MeanSums]:
        """Return metric sums of the log ratio to the teacher, and of tokens that the clamp or the anchor decides.

        - `anchor_veto_fraction_positive`, `_negative`: tokens of that sign of A that the anchor clips at pi = pi_old.
        - `anchor_clip_fraction`: tokens that are clipped now, and would not be with the ratio of GRPO.
        """
        if tokens.teacher_logprobs is None:
            return {}
        config, advantages, valid = self.config, tokens.advantages, tokens.is_valid
        low, high = config.clamp_bounds
        to_teacher = tokens.policy_logprobs - tokens.teacher_logprobs
        at_start = (1 - config.alpha) * (tokens.behaviour_logprobs - tokens.teacher_logprobs).clamp(low, high)
        if config.anchor == "agreeing":
            at_start = at_start.where(at_start * advantages < 0, 0)
        plain = clipped_surrogate(tokens.policy_logprobs - tokens.behaviour_logprobs, advantages, config)
        anchored = clipped_surrogate(log_ratio, advantages, config)
        return {
            **log_ratio_means("teacher", to_teacher, valid),
            "objective/teacher_clamp_fraction": mean_over((to_teacher < low) | (to_teacher > high), valid),
            "objective/anchor_veto_fraction_positive": mean_over(
                at_start > math.log(1 + config.eps_high), valid & (advantages > 0)
            ),
            "objective/anchor_veto_fraction_negative": mean_over(
                at_start < math.log(1 - config.eps_low), valid & (advantages < 0)
            ),
            "objective/anchor_clip_fraction": mean_over(anchored.is_clipped & ~plain.is_clipped, valid),
        }
