"""Reinforcement learning with self-distillation (RLSD): the teacher in the credit."""

from __future__ import annotations

import torch
from torch import Tensor

from rlad.config.objectives import RlsdConfig
from rlad.objectives.metrics import MeanSums, mean_over
from rlad.objectives.objective import Objective, TokenLosses
from rlad.objectives.ratios import bounded_ratio, log_ratio_means, surrogate_losses
from rlad.objectives.tokens import Tokens


class RlsdObjective(Objective[RlsdConfig]):
    """RLSD: GRPO in which the teacher distributes the advantage over the tokens of a response (arXiv:2604.03128).

    ```
    loss  = -min(r B, clip(r, 1 - eps_low, 1 + eps_high) B)
    log r = log pi - log pi_old
    B     = A ((1 - lambda) + lambda clip(w, 1 - eps_w, 1 + eps_w))
    w     = (pi_T / pi_old)^sign(A)
    ```

    Source: Eq. 13-15, and section 4.2 for B in the place of A in GRPO. Eq. 16 of v1 writes the clipped weight into the
    place of the ratio instead. The loss is per token. w is constant in pi, and positive, so B has the sign of A for
    every token, and A = 0 gives exactly no gradient. `lambda` decreases linearly during the run. At lambda = 0 the loss
    equals that of GRPO bit for bit.
    """

    def token_losses(self, tokens: Tokens) -> TokenLosses:
        """Return the loss of each token."""
        log_ratio = tokens.policy_logprobs - tokens.behaviour_logprobs
        if tokens.teacher_logprobs is None:
            return surrogate_losses(tokens, log_ratio, self.config)
        weights, is_clipped = self._weights(tokens, tokens.teacher_logprobs)
        mixing = self.config.mixing_at(tokens.progress)
        # The advantage must stay untouched at lambda = 0, where (1 - 0) + 0 w = 1 exactly.
        advantages = tokens.advantages * ((1 - mixing) + mixing * weights)
        surrogate = surrogate_losses(tokens, log_ratio, self.config, advantages=advantages)
        to_teacher = tokens.policy_logprobs - tokens.teacher_logprobs
        means: dict[str, MeanSums] = {
            "objective/credit_weight_mean": mean_over(weights, tokens.is_valid),
            "objective/credit_clip_fraction": mean_over(is_clipped, tokens.is_valid),
            **log_ratio_means("teacher", to_teacher, tokens.is_valid),
        }
        return TokenLosses(losses=surrogate.losses, means={**surrogate.means, **means})

    @torch.no_grad()
    def _weights(self, tokens: Tokens, teacher_logprobs: Tensor) -> tuple[Tensor, Tensor]:
        """Return the clipped weight of each token, and where the clip decides it."""
        gain = teacher_logprobs - tokens.behaviour_logprobs
        weights = bounded_ratio(tokens.advantages.sign() * gain)
        low, high = 1 - self.config.weight_clip, 1 + self.config.weight_clip
        return weights.clamp(low, high), (weights < low) | (weights > high)
