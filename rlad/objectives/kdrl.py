"""KDRL objective."""

from __future__ import annotations

from rlad.config.objectives import KdrlConfig
from rlad.objectives.imitation import imitation_loss, imitation_means, imitation_reward
from rlad.objectives.objective import Objective, TokenLosses
from rlad.objectives.ratios import surrogate_losses
from rlad.objectives.tokens import Tokens


class KdrlObjective(Objective[KdrlConfig]):
    """KDRL: the GRPO loss plus a KL term towards the teacher (arXiv:2602.22495, Eq. 2; arXiv:2506.02208).

    ```
    loss  = -min(r A, clip(r, 1 - eps_low, 1 + eps_high) A) + beta KL(pi, pi_T)
    log r = log pi - log pi_old
    ```

    The loss is per token, on the student's own responses. The estimator of the divergence is configured. With
    `k1_reward`, `beta (log pi_T - log pi_old)` is added to the advantage instead, because k1 as a direct loss has a
    gradient that ignores the teacher; with old samples, `log pi` of the current student replaces
    `log pi_old` (`reward_student`). `imitate` restricts the KL term to responses or groups without reward.
    """

    def token_losses(self, tokens: Tokens) -> TokenLosses:
        """Return the KDRL loss of each token."""
        config, log_ratio = self.config, tokens.policy_logprobs - tokens.behaviour_logprobs
        beta = config.beta_at(tokens.progress)
        if config.estimator == "k1_reward":
            reward = imitation_reward(tokens, config.reward_student)
            surrogate = surrogate_losses(tokens, log_ratio, config, advantages=tokens.advantages + beta * reward)
            return TokenLosses(losses=surrogate.losses, means={**surrogate.means, **imitation_means(tokens, -reward)})
        surrogate = surrogate_losses(tokens, log_ratio, config)
        divergence = imitation_loss(tokens, config.estimator)
        return TokenLosses(
            losses=surrogate.losses + beta * divergence,
            means={**surrogate.means, **imitation_means(tokens, divergence)},
        )
