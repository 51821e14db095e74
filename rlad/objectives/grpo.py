"""GRPO: the clipped surrogate of the plain likelihood ratio."""

from __future__ import annotations

from typing import ClassVar, Literal

from rlad.objectives.objective import Objective, TokenLosses, Tokens
from rlad.objectives.ratios import ClippedSurrogateSettings, clipped_surrogate, surrogate_means


class GrpoConfig(ClippedSurrogateSettings):
    """`min(r A, clip(r) A)` with `log r = log pi - log pi_old` (arXiv:2602.22495, Eq. 1). Uses no teacher."""

    zero_advantage_gives_zero_gradient: ClassVar[bool] = True

    name: Literal["grpo"] = "grpo"

    @property
    def uses_teacher(self) -> bool:
        return False

    def build(self) -> GrpoObjective:
        return GrpoObjective(self)


class GrpoObjective(Objective[GrpoConfig]):
    def token_losses(self, tokens: Tokens) -> TokenLosses:
        log_ratio = tokens.policy_logprobs - tokens.behaviour_logprobs
        surrogate = clipped_surrogate(log_ratio, tokens.advantages, self.config)
        return TokenLosses(losses=-surrogate.values, means=surrogate_means(tokens, log_ratio, surrogate.is_clipped))
