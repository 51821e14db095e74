"""Plain on-policy distillation: the student's own responses, the teacher's opinion of them, no reward."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from rlad.objectives.imitation import Estimator, ImitationSettings, imitation_loss, imitation_means, imitation_reward
from rlad.objectives.objective import Objective, TokenLosses
from rlad.objectives.ratios import ClippedSurrogateSettings, log_ratio_means, surrogate_losses
from rlad.objectives.tokens import Tokens


class OpdConfig(ImitationSettings, ClippedSurrogateSettings):
    """`KL(pi, pi_T)` on the student's own responses (on-policy distillation, arXiv:2306.13649; as a policy gradient, arXiv:2306.08543).

    With `k1_reward`, the default, `log pi_T - log pi_old` is each token's advantage under the clipped surrogate; the other estimators are minimised as
    they are. Rewards are looked at by the metrics only.
    """

    name: Literal["opd"] = "opd"
    estimator: Annotated[Estimator, Field(description="Of KL(pi, pi_T): see docs/methods.md.")] = "k1_reward"

    @model_validator(mode="after")
    def _surrogate_options_need_the_surrogate(self) -> Self:
        if self.estimator != "k1_reward" and (self.mismatch != "off" or self.dual_clip is not None):
            raise ValueError(
                f"mismatch and dual_clip act on the policy gradient, which estimator {self.estimator} has not: use k1_reward, or leave them"
            )
        return self

    @property
    def uses_teacher(self) -> bool:
        return True

    @property
    def _is_advantage_times_something(self) -> bool:
        return False

    def build(self) -> OpdObjective:
        return OpdObjective(self)


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
