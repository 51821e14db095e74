"""Supervised fine-tuning: the likelihood of given responses, such as a teacher's traces."""

from __future__ import annotations

from rlad.config.objectives import SftConfig
from rlad.objectives.metrics import mean_over
from rlad.objectives.objective import Objective, TokenLosses
from rlad.objectives.tokens import Tokens


class SftObjective(Objective[SftConfig]):
    def token_losses(self, tokens: Tokens) -> TokenLosses:
        losses = -tokens.policy_logprobs
        return TokenLosses(
            losses=losses, means={"objective/negative_log_likelihood": mean_over(losses.detach(), tokens.is_valid)}
        )
