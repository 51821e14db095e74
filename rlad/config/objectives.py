"""Configuration of the training objectives.

This module does not import torch. The losses are in `rlad.objectives`, one file per objective.
"""

from __future__ import annotations

import math
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from rlad.advantages import ImitationMask
from rlad.config.objective_options import (
    ESTIMATOR_DESCRIPTION,
    Aggregation,
    ClippedSurrogateSettings,
    EntropyBonus,
    Estimator,
    ImitationSettings,
    ObjectiveSettings,
    SampledEstimator,
)

__all__ = [
    "Aggregation",
    "ClippedSurrogateSettings",
    "EntropyBonus",
    "Estimator",
    "GrpoConfig",
    "ImitationSettings",
    "KdrlConfig",
    "ObjectiveConfig",
    "ObjectiveSettings",
    "OpdConfig",
    "SampledEstimator",
    "SftConfig",
    "TeacherClampGradient",
    "TrrdConfig",
]

TeacherClampGradient = Literal["clipped", "straight_through"]

_SELECTS = "Selects this objective."


class TrrdConfig(ClippedSurrogateSettings):
    """Trust region ratio distillation (TRRD): GRPO with a likelihood ratio anchored at student and teacher.

    The surrogate is `min(r A, clip(r) A)` with
    `log r = alpha log(pi / pi_old) + (1 - alpha) clamp(log(pi / pi_T), -c, c)`
    (arXiv:2602.22495, Eq. 3-5, App. B). The teacher scales an update and moves the point where it is clipped, but
    never changes its sign. With alpha below 1 the ratio is not 1 at pi = pi_old, so tokens are clipped from the first
    step, unless `(1 - alpha) c` is within the clip range.
    """

    name: Annotated[Literal["trrd"], Field(description=_SELECTS)] = "trrd"
    alpha: Annotated[
        float,
        Field(ge=0, le=1, description="Weight of pi_old in the anchor: 1 is GRPO, 0 anchors at the teacher alone."),
    ] = 0.5
    teacher_log_ratio_clamp: Annotated[
        float, Field(gt=0, description="Bound c of the log ratio to the teacher, in nats: clamped to [-c, c].")
    ] = 1.0
    teacher_clamp_gradient: Annotated[
        TeacherClampGradient,
        Field(
            description="Gradient outside the clamp: `clipped` (the paper) has d log r / d log pi = alpha; "
            "`straight_through` has 1, so only the value is clamped."
        ),
    ] = "clipped"

    @property
    def uses_teacher(self) -> bool:
        return self.alpha < 1


class GrpoConfig(ClippedSurrogateSettings):
    """GRPO: `min(r A, clip(r) A)` with `log r = log pi - log pi_old` (arXiv:2602.22495, Eq. 1). Uses no teacher."""

    name: Annotated[Literal["grpo"], Field(description=_SELECTS)] = "grpo"

    @property
    def uses_teacher(self) -> bool:
        return False


class KdrlConfig(ImitationSettings, ClippedSurrogateSettings):
    """KDRL: the surrogate of GRPO minus `beta KL(pi, pi_T)` on the student's responses.

    See arXiv:2602.22495, Eq. 2, and arXiv:2506.02208. Unlike in TRRD, the teacher's pull does not depend on the reward:
    a token of a correct response to which the teacher gives a low probability becomes less likely.
    """

    name: Annotated[Literal["kdrl"], Field(description=_SELECTS)] = "kdrl"
    estimator: Annotated[Estimator, Field(description=ESTIMATOR_DESCRIPTION)] = "k2"
    beta: Annotated[
        float,
        Field(
            ge=0, allow_inf_nan=False, description="Coefficient of the divergence at the first update. Needs tuning."
        ),
    ] = 2e-3
    beta_end: Annotated[
        float | None,
        Field(ge=0, allow_inf_nan=False, description="Coefficient at the last update; null keeps it constant."),
    ] = None
    beta_schedule: Annotated[
        Literal["linear", "cosine"], Field(description="Schedule of the coefficient from `beta` to `beta_end`.")
    ] = "linear"
    imitate: Annotated[
        ImitationMask,
        Field(
            description="Reward-guided masking of the divergence. `none` applies it to all responses, `response` "
            "only to responses without reward, `group` only to groups in which no response has a reward."
        ),
    ] = "none"

    @model_validator(mode="after")
    def _beta_end_fits(self) -> Self:
        if self.beta_end is None and self.beta_schedule != "linear":
            raise ValueError(
                f"beta_schedule requires beta_end; got beta_schedule {self.beta_schedule} and beta_end null"
            )
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
        """Return the coefficient after a fraction of the updates, `progress` in [0, 1]."""
        if self.beta_end is None:
            return self.beta
        done = progress if self.beta_schedule == "linear" else (1 - math.cos(math.pi * progress)) / 2
        return self.beta + (self.beta_end - self.beta) * done


class OpdConfig(ImitationSettings, ClippedSurrogateSettings):
    """On-policy distillation: minimizes `KL(pi, pi_T)` on the student's responses.

    See arXiv:2306.13649, and arXiv:2306.08543 for the policy gradient. With the default estimator `k1_reward`,
    `log pi_T - log pi_old` is the advantage of each token under the clipped surrogate. The other estimators are
    minimized directly. Rewards only affect metrics.
    """

    name: Annotated[Literal["opd"], Field(description=_SELECTS)] = "opd"
    estimator: Annotated[Estimator, Field(description=ESTIMATOR_DESCRIPTION)] = "k1_reward"

    @model_validator(mode="after")
    def _surrogate_options_need_the_surrogate(self) -> Self:
        if self.estimator != "k1_reward" and (self.mismatch != "off" or self.dual_clip is not None):
            raise ValueError(
                f"mismatch and dual_clip require estimator k1_reward; got {self.estimator}, which has no policy "
                "gradient. Use k1_reward, or remove both settings"
            )
        return self

    @property
    def uses_teacher(self) -> bool:
        return True

    @property
    def _is_advantage_times_something(self) -> bool:
        return False


class SftConfig(ObjectiveSettings):
    """Supervised fine-tuning: minimizes `-log pi` of every response token.

    With traces that a teacher generated and a verifier accepted this is offline distillation. Training itself uses
    neither teacher nor verifier.
    """

    name: Annotated[Literal["sft"], Field(description=_SELECTS)] = "sft"

    @property
    def uses_teacher(self) -> bool:
        return False

    @property
    def _is_advantage_times_something(self) -> bool:
        return False


ObjectiveConfig = Annotated[TrrdConfig | GrpoConfig | KdrlConfig | OpdConfig | SftConfig, Field(discriminator="name")]
