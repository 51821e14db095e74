"""GRPO: the clipped surrogate of the plain likelihood ratio."""

from __future__ import annotations

from rlad.config.objectives import GrpoConfig
from rlad.objectives.objective import Objective, TokenLosses
from rlad.objectives.ratios import surrogate_losses
from rlad.objectives.tokens import Tokens


class GrpoObjective(Objective[GrpoConfig]):
    def token_losses(self, tokens: Tokens) -> TokenLosses:
        return surrogate_losses(tokens, tokens.policy_logprobs - tokens.behaviour_logprobs, self.config)
