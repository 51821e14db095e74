"""Plain on-policy distillation."""

from __future__ import annotations

from rlad.config.objectives import OpdConfig
from rlad.objectives.imitation import imitation_loss, imitation_means, imitation_reward
from rlad.objectives.objective import Objective, TokenLosses
from rlad.objectives.ratios import log_ratio_means, surrogate_losses
from rlad.objectives.tokens import Tokens


class OpdObjective(Objective[OpdConfig]):
    """Plain on-policy distillation: KL(pi, pi_T) on the student's own responses, without task reward.

    ```
    k1_reward:         loss = -min(r R, clip(r, 1 - eps_low, 1 + eps_high) R)
                       log r = log pi - log pi_old,  R = log pi_T - log pi_old
    other estimators:  loss = KL(pi, pi_T)
    ```

    The loss is per token. With `k1_reward` (arXiv:2306.08543), R replaces the advantage; with old samples, `log pi` of
    the current student replaces `log pi_old` in R (`reward_student`, arXiv:2606.24143). The other estimators are
    minimized directly (arXiv:2306.13649).
    """

    def token_losses(self, tokens: Tokens) -> TokenLosses:
        """Return the distillation loss of each token."""
        log_ratio = tokens.policy_logprobs - tokens.behaviour_logprobs
        if self.config.estimator == "k1_reward":
            reward = imitation_reward(tokens, self.config.reward_student)
            surrogate = surrogate_losses(tokens, log_ratio, self.config, advantages=reward)
            return TokenLosses(losses=surrogate.losses, means={**surrogate.means, **imitation_means(tokens, -reward)})
        divergence = imitation_loss(tokens, self.config.estimator)
        means = {**log_ratio_means("behaviour", log_ratio, tokens.is_valid), **imitation_means(tokens, divergence)}
        return TokenLosses(losses=divergence, means=means)
