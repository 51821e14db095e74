"""GRPO: the clipped surrogate of the plain likelihood ratio."""

from __future__ import annotations

from typing import Literal

from rlad.objectives.objective import Objective, TokenLosses
from rlad.objectives.ratios import ClippedSurrogateSettings, surrogate_losses
from rlad.objectives.tokens import Tokens


class GrpoConfig(ClippedSurrogateSettings):
    """`min(r A, clip(r) A)` with `log r = log pi - log pi_old` (arXiv:2602.22495, Eq. 1). Uses no teacher."""

    name: Literal["grpo"] = "grpo"

    @property
    def uses_teacher(self) -> bool:
        return False

    def build(self) -> GrpoObjective:
        return GrpoObjective(self)


class GrpoObjective(Objective[GrpoConfig]):
    def token_losses(self, tokens: Tokens) -> TokenLosses:
        return surrogate_losses(tokens, tokens.policy_logprobs - tokens.behaviour_logprobs, self.config)
