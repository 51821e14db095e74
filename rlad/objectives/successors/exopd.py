"""On-policy distillation with reward extrapolation (ExOPD)."""

from __future__ import annotations

import torch
from torch import Tensor

from rlad.config.objectives import ExopdConfig
from rlad.objectives.imitation import imitation_means, imitation_reward, teacher_of
from rlad.objectives.objective import Objective, TokenLosses
from rlad.objectives.ratios import surrogate_losses
from rlad.objectives.tokens import Tokens


class ExopdObjective(Objective[ExopdConfig]):
    """ExOPD: on-policy distillation that extrapolates beyond the teacher (G-OPD, arXiv:2602.12125).

    ```
    loss  = -min(r R, clip(r, 1 - eps_low, 1 + eps_high) R)
    log r = log pi - log pi_old
    R     = lambda (log pi_T - log pi_ref) - (log pi_old - log pi_ref)
          = (log pi_T - log pi_old) + (lambda - 1) (log pi_T - log pi_ref)
    ```

    The loss is per token. R is constant in pi. Its expected gradient at pi = pi_old is that of
    `KL(pi, pi_ref) - lambda E[log pi_T - log pi_ref]` of the next token, whose minimum is proportional to
    `pi_ref (pi_T / pi_ref)^lambda`. At lambda = 1 the loss equals that of `opd` with `k1_reward` bit for bit, and no
    reference is read. With old samples, `log pi` of the current student replaces `log pi_old` in R (`reward_student`).
    """

    def token_losses(self, tokens: Tokens) -> TokenLosses:
        """Return the loss of each token."""
        reward = imitation_reward(tokens, self.config.reward_student)
        log_ratio = tokens.policy_logprobs - tokens.behaviour_logprobs
        surrogate = surrogate_losses(tokens, log_ratio, self.config, advantages=reward + self._extrapolation(tokens))
        return TokenLosses(losses=surrogate.losses, means={**surrogate.means, **imitation_means(tokens, -reward)})

    @torch.no_grad()
    def _extrapolation(self, tokens: Tokens) -> Tensor:
        """Return `(lambda - 1) (log pi_T - log pi_ref)` of each token."""
        if self.config.extrapolation == 1:
            return torch.zeros_like(tokens.behaviour_logprobs)
        assert tokens.reference_logprobs is not None  # `uses_reference` requires it.
        return (self.config.extrapolation - 1) * (teacher_of(tokens) - tokens.reference_logprobs)
