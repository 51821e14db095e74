"""KDRL: GRPO with the KL divergence from the teacher beside it."""

from __future__ import annotations

from rlad.config.objectives import KdrlConfig
from rlad.objectives.imitation import imitation_loss, imitation_means, imitation_reward
from rlad.objectives.objective import Objective, TokenLosses
from rlad.objectives.ratios import surrogate_losses
from rlad.objectives.tokens import Tokens


class KdrlObjective(Objective[KdrlConfig]):
    def token_losses(self, tokens: Tokens) -> TokenLosses:
        config, log_ratio = self.config, tokens.policy_logprobs - tokens.behaviour_logprobs
        beta = config.beta_at(tokens.progress)
        if config.estimator == "k1_reward":
            reward = imitation_reward(tokens)
            own = surrogate_losses(tokens, log_ratio, config, advantages=tokens.advantages + beta * reward)
            return TokenLosses(losses=own.losses, means={**own.means, **imitation_means(tokens, -reward)})
        own = surrogate_losses(tokens, log_ratio, config)
        divergence = imitation_loss(tokens, config.estimator)
        return TokenLosses(
            losses=own.losses + beta * divergence, means={**own.means, **imitation_means(tokens, divergence)}
        )
