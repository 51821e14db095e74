"""Trust Region Ratio Distillation (TRRD), the objective of RLAD."""

from __future__ import annotations

import torch
from torch import Tensor

from rlad.config.objectives import TrrdConfig
from rlad.objectives.metrics import MeanSums, mean_over
from rlad.objectives.objective import Objective, TokenLosses
from rlad.objectives.ratios import clamped_teacher_log_ratio, log_ratio_means, surrogate_losses
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
    both thresholds, for example with alpha >= 0.8 and c = 1 (defaults of eps_low and eps_high).

    At alpha = 1 the loss equals GRPO bit for bit. Section 4.1 of the paper swaps the endpoints of alpha in one
    sentence; Eq. 3 and App. C are right.
    """

    def token_losses(self, tokens: Tokens) -> TokenLosses:
        """Return the TRRD loss of each token."""
        surrogate = surrogate_losses(tokens, self._anchored_log_ratio(tokens), self.config)
        return TokenLosses(losses=surrogate.losses, means={**surrogate.means, **self._teacher_means(tokens)})

    def _anchored_log_ratio(self, tokens: Tokens) -> Tensor:
        """Return `log r` of each token (arXiv:2602.22495, Eq. 3, App. B)."""
        to_behaviour = tokens.policy_logprobs - tokens.behaviour_logprobs
        # At alpha = 1 the teacher term is absent, not weighted by 0, so the loss equals GRPO bit for bit.
        if tokens.teacher_logprobs is None:
            return to_behaviour
        config = self.config
        to_teacher = tokens.policy_logprobs - tokens.teacher_logprobs
        clamped = clamped_teacher_log_ratio(to_teacher, config.teacher_log_ratio_clamp, config.teacher_clamp_gradient)
        return config.alpha * to_behaviour + (1 - config.alpha) * clamped

    @torch.no_grad()
    def _teacher_means(self, tokens: Tokens) -> dict[str, MeanSums]:
        """Return metric sums of the log ratio to the teacher and of the fraction of clamped tokens."""
        if tokens.teacher_logprobs is None:
            return {}
        to_teacher = tokens.policy_logprobs - tokens.teacher_logprobs
        is_clamped = to_teacher.abs() > self.config.teacher_log_ratio_clamp
        return {
            **log_ratio_means("teacher", to_teacher, tokens.is_valid),
            "objective/teacher_clamp_fraction": mean_over(is_clamped, tokens.is_valid),
        }
