"""KDRL: GRPO with the KL divergence from the teacher beside it."""

from __future__ import annotations

import math
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from rlad.advantages import ImitationMask
from rlad.objectives.imitation import Estimator, ImitationSettings, imitation_loss, imitation_means, imitation_reward
from rlad.objectives.objective import Objective, TokenLosses
from rlad.objectives.ratios import ClippedSurrogateSettings, surrogate_losses
from rlad.objectives.tokens import Tokens


class KdrlConfig(ImitationSettings, ClippedSurrogateSettings):
    """GRPO's surrogate minus `beta KL(pi, pi_T)` on the student's own responses (arXiv:2602.22495, Eq. 2; arXiv:2506.02208).

    Unlike TRRD the teacher pulls whatever the reward says: a token of a right answer that the teacher dislikes is pushed down.
    """

    name: Literal["kdrl"] = "kdrl"
    estimator: Annotated[Estimator, Field(description="Of KL(pi, pi_T): see docs/methods.md.")] = "k2"
    beta: Annotated[float, Field(ge=0, allow_inf_nan=False, description="Coefficient of the divergence, at the first update. Tune it.")] = 2e-3
    beta_end: Annotated[float | None, Field(ge=0, allow_inf_nan=False, description="Coefficient at the last update; none keeps it constant.")] = None
    beta_schedule: Annotated[Literal["linear", "cosine"], Field(description="How the coefficient goes from `beta` to `beta_end`.")] = "linear"
    imitate: Annotated[
        ImitationMask,
        Field(
            description="Reward-guided masking (KDRL): the divergence of all responses (`none`), only of responses without reward (`response`), or only "
            "of groups in which no response has one (`group`)."
        ),
    ] = "none"

    @model_validator(mode="after")
    def _beta_end_fits(self) -> Self:
        if self.beta_end is None and self.beta_schedule != "linear":
            raise ValueError("beta_schedule needs beta_end, the coefficient to go to")
        return self

    @property
    def uses_teacher(self) -> bool:
        return True

    @property
    def imitation_mask(self) -> ImitationMask:
        return self.imitate

    @property
    def _is_advantage_times_something(self) -> bool:
        return False

    def beta_at(self, progress: float) -> float:
        """The coefficient when a share of the updates is done."""
        if self.beta_end is None:
            return self.beta
        done = progress if self.beta_schedule == "linear" else (1 - math.cos(math.pi * progress)) / 2
        return self.beta + (self.beta_end - self.beta) * done

    def build(self) -> KdrlObjective:
        return KdrlObjective(self)


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
        return TokenLosses(losses=own.losses + beta * divergence, means={**own.means, **imitation_means(tokens, divergence)})
