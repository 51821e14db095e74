"""Supervised fine-tuning: the likelihood of given responses, such as a teacher's traces."""

from __future__ import annotations

from typing import Literal

from rlad.objectives.metrics import mean_over
from rlad.objectives.objective import Objective, ObjectiveSettings, TokenLosses
from rlad.objectives.tokens import Tokens


class SftConfig(ObjectiveSettings):
    """`-log pi` of every token of the responses. Offline distillation where a teacher wrote them and a verifier chose them; uses neither at training."""

    name: Literal["sft"] = "sft"

    @property
    def uses_teacher(self) -> bool:
        return False

    @property
    def _is_advantage_times_something(self) -> bool:
        return False

    def build(self) -> SftObjective:
        return SftObjective(self)


class SftObjective(Objective[SftConfig]):
    def token_losses(self, tokens: Tokens) -> TokenLosses:
        losses = -tokens.policy_logprobs
        return TokenLosses(losses=losses, means={"objective/negative_log_likelihood": mean_over(losses.detach(), tokens.is_valid)})
