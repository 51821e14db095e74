"""Plain on-policy distillation: the student's own responses, the teacher's opinion of them, no reward."""

from __future__ import annotations

from rlad.config.objectives import OpdConfig
from rlad.objectives.imitation import imitation_loss, imitation_means, imitation_reward
from rlad.objectives.objective import Objective, TokenLosses
from rlad.objectives.ratios import log_ratio_means, surrogate_losses
from rlad.objectives.tokens import Tokens


class OpdObjective(Objective[OpdConfig]):
    def token_losses(self, tokens: Tokens) -> TokenLosses:
        log_ratio = tokens.policy_logprobs - tokens.behaviour_logprobs
        if self.config.estimator == "k1_reward":
            reward = imitation_reward(tokens)
            own = surrogate_losses(tokens, log_ratio, self.config, advantages=reward)
            return TokenLosses(losses=own.losses, means={**own.means, **imitation_means(tokens, -reward)})
        divergence = imitation_loss(tokens, self.config.estimator)
        means = {**log_ratio_means("behaviour", log_ratio, tokens.is_valid), **imitation_means(tokens, divergence)}
        return TokenLosses(losses=divergence, means=means)
