"""Supervised fine-tuning: cross-entropy on given responses."""

from __future__ import annotations

from typing import ClassVar, Literal

from rlad.objectives.objective import Objective, ObjectiveSettings, TokenLosses, Tokens
from rlad.objectives.ratios import mean_over


class SftConfig(ObjectiveSettings):
    """`-log pi(token)`: maximum likelihood of traces that the teacher sampled (`rlad offline`). Uses neither rewards nor a teacher while it trains."""

    zero_advantage_gives_zero_gradient: ClassVar[bool] = False

    name: Literal["sft"] = "sft"

    @property
    def uses_teacher(self) -> bool:
        return False

    def build(self) -> SftObjective:
        return SftObjective(self)


class SftObjective(Objective[SftConfig]):
    def token_losses(self, tokens: Tokens) -> TokenLosses:
        losses = -tokens.policy_logprobs
        return TokenLosses(losses=losses, means={"objective/cross_entropy": mean_over(losses.detach(), tokens.is_valid)})
