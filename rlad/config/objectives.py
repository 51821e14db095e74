"""Configuration of the training objectives.

This module does not import torch. The losses are in `rlad.objectives`, one file per objective.
"""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from rlad.advantages import ImitationMask
from rlad.config.objective_options import (
    ESTIMATOR_DESCRIPTION,
    Aggregation,
    ClippedSurrogateSettings,
    EntropyBonus,
    Estimator,
    ImitationSettings,
    ObjectiveSettings,
    RewardStudent,
    RewardStudentSettings,
    SampledEstimator,
)
from rlad.contracts import TeacherSupport

__all__ = [
    "Aggregation",
    "ClippedSurrogateSettings",
    "EntropyBonus",
    "EopdConfig",
    "Estimator",
    "ExopdConfig",
    "GrpoConfig",
    "ImitationSettings",
    "KdrlConfig",
    "ObjectiveConfig",
    "ObjectiveSettings",
    "OpdConfig",
    "RewardStudent",
    "RlsdConfig",
    "SampledEstimator",
    "SftConfig",
    "TeacherClampGradient",
    "TrrdConfig",
]

TeacherClampGradient = Literal["clipped", "straight_through"]
Anchor = Literal["always", "agreeing"]

AUTO_CLAMP_MARGIN = 0.9
"""Part of the clip range that the anchor may use under clamp `auto`. The rest is left to the update itself."""


def _clamp(value: Any) -> Any:
    """Refuse everything that is neither a positive number nor `auto`, with one message instead of one per type."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and value > 0
    if not is_number and value != "auto":
        raise ValueError("must be a number above 0, or `auto`")
    return value


_SELECTS = "Selects this objective."


class TrrdConfig(ClippedSurrogateSettings):
    """Trust region ratio distillation (TRRD): GRPO with a likelihood ratio anchored at student and teacher.

    The surrogate is `min(r A, clip(r) A)` with
    `log r = alpha log(pi / pi_old) + (1 - alpha) clamp(log(pi / pi_T), -c, c)`
    (arXiv:2602.22495, Eq. 3-5, App. B). For a single token, the teacher scales the update and moves the point where it
    is clipped; the sign stays that of A. In expectation it can turn the update. At pi = pi_old the ratio is
    `(pi_old / pi_T)^(1 - alpha)`, clamped. If `(1 - alpha) c > ln(1 + eps_high)`, a token that the student prefers by
    more than `ln(1 + eps_high) / (1 - alpha)` has no gradient where A > 0 and the full gradient where A < 0; for tokens
    that the teacher prefers it is the other way round, from `-ln(1 - eps_low) / (1 - alpha)`. With the defaults, which
    are the paper's, the expected update therefore imitates the teacher in groups with mixed rewards. With
    `(1 - alpha) c` below 0.223, nothing is clipped at pi = pi_old: clamp `auto`, or alpha of at least 0.8 with c = 1.
    """

    name: Annotated[Literal["trrd"], Field(description=_SELECTS)] = "trrd"
    alpha: Annotated[
        float,
        Field(ge=0, le=1, description="Weight of pi_old in the anchor: 1 is GRPO, 0 anchors at the teacher alone."),
    ] = 0.5
    teacher_log_ratio_clamp: Annotated[
        float | Literal["auto"],
        BeforeValidator(_clamp),
        Field(
            description="Bound c > 0 of the log ratio to the teacher, in nats: clamped to [-c, c]; the paper's is 1. "
            f"`auto` clamps to {AUTO_CLAMP_MARGIN:g} times [ln(1 - eps_low), ln(1 + eps_high)] / (1 - alpha), the "
            "widest clamp with a margin at which the anchor alone clips no token. Choose it for a teacher that is not "
            "fully trusted."
        ),
    ] = 1.0
    teacher_clamp_gradient: Annotated[
        TeacherClampGradient,
        Field(
            description="Gradient outside the clamp: `clipped` (the paper) has d log r / d log pi = alpha; "
            "`straight_through` has 1, so only the value is clamped."
        ),
    ] = "clipped"
    anchor: Annotated[
        Anchor,
        Field(
            description="Tokens whose ratio has the teacher in it. `always`: all (the paper). `agreeing` "
            "(experimental): only those where teacher and advantage agree, (log pi_T - log pi_old) A > 0; the others "
            "have the ratio of GRPO, and no token is clipped at pi = pi_old."
        ),
    ] = "always"

    @property
    def uses_teacher(self) -> bool:
        return self.alpha < 1

    @property
    def clamp_bounds(self) -> tuple[float, float]:
        """Bounds of the log ratio to the teacher, in nats."""
        if self.teacher_log_ratio_clamp != "auto":
            return -self.teacher_log_ratio_clamp, self.teacher_log_ratio_clamp
        if not self.uses_teacher:
            return -math.inf, math.inf
        low, high = (AUTO_CLAMP_MARGIN * bound for bound in self.veto_thresholds)
        return low, high

    @property
    def veto_thresholds(self) -> tuple[float, float]:
        """Log ratios `log pi_old - log pi_T` beyond which the anchor alone clips at pi = pi_old, in nats.

        Below the first, tokens with A < 0 have no gradient; above the second, tokens with A > 0.
        """
        if not self.uses_teacher:
            return -math.inf, math.inf
        return math.log(1 - self.eps_low) / (1 - self.alpha), math.log(1 + self.eps_high) / (1 - self.alpha)

    @property
    def can_veto(self) -> bool:
        """Whether the anchor alone can clip a token at pi = pi_old."""
        (low, high), (lowest, highest) = self.clamp_bounds, self.veto_thresholds
        return self.uses_teacher and self.anchor == "always" and (low < lowest or high > highest)


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
    def ignores_rewards(self) -> bool:
        return True

    @property
    def _is_advantage_times_something(self) -> bool:
        return False


class ExopdConfig(RewardStudentSettings, ClippedSurrogateSettings):
    """On-policy distillation that extrapolates beyond the teacher (ExOPD).

    The advantage of each token is `lambda (log pi_T - log pi_ref) - (log pi_old - log pi_ref)` under the clipped
    surrogate (G-OPD, arXiv:2602.12125). Its optimum is proportional to `pi_ref (pi_T / pi_ref)^lambda`: with lambda = 1
    the teacher, which is `opd`; above 1 the step from reference to teacher is continued. The reference is the
    student at the start, or the model from which the teacher was trained. Rewards only affect metrics.
    """

    name: Annotated[Literal["exopd"], Field(description=_SELECTS)] = "exopd"
    extrapolation: Annotated[
        float,
        Field(
            gt=0,
            allow_inf_nan=False,
            description="Scale lambda of the teacher's reward log(pi_T / pi_ref). 1 is `opd`, and needs no reference; "
            "other values require a `reference` section. The paper has 1.25.",
        ),
    ] = 1.25

    @property
    def uses_teacher(self) -> bool:
        return True

    @property
    def uses_reference(self) -> bool:
        return self.reference_kl > 0 or self.extrapolation != 1

    @property
    def ignores_rewards(self) -> bool:
        return True

    @property
    def _is_advantage_times_something(self) -> bool:
        return False


class EopdConfig(RewardStudentSettings, ClippedSurrogateSettings):
    """Entropy-aware on-policy distillation: adds a forward KL where the teacher is uncertain (arXiv:2603.07079).

    The loss is that of `opd` with `k1_reward`, plus `sum_k p_T(k) (log p_T(k) - log pi(k))` over the teacher's `top_k`
    likeliest tokens where its entropy exceeds a threshold. Rewards only affect metrics.
    """

    name: Annotated[Literal["eopd"], Field(description=_SELECTS)] = "eopd"
    top_k: Annotated[
        int, Field(ge=1, description="Number of the teacher's likeliest tokens in the forward KL and in its entropy.")
    ] = 16
    entropy_threshold: Annotated[
        float,
        Field(
            ge=0,
            description="Entropy of the teacher in nats, above which a token has the forward KL. All tokens outside "
            "`top_k` count as one, so the entropy is a lower bound.",
        ),
    ] = 0.8
    forward_kl: Annotated[float, Field(ge=0, allow_inf_nan=False, description="Coefficient of the forward KL.")] = 1.0

    @property
    def uses_teacher(self) -> bool:
        return True

    @property
    def teacher_support(self) -> TeacherSupport:
        return self.top_k

    @property
    def ignores_rewards(self) -> bool:
        return True

    @property
    def _is_advantage_times_something(self) -> bool:
        return False


class RlsdConfig(ClippedSurrogateSettings):
    """RLSD: GRPO in which the teacher distributes each response's advantage over its tokens (arXiv:2604.03128).

    The advantage of a token is `A ((1 - lambda) + lambda clip(w, 1 - eps_w, 1 + eps_w))` with
    `w = (pi_T / pi_old)^sign(A)`: the teacher scales it, and never turns it. The paper's teacher is the student itself
    behind a prompt with the reference answer (`teacher.prompt_template`).
    """

    name: Annotated[Literal["rlsd"], Field(description=_SELECTS)] = "rlsd"
    weight_clip: Annotated[
        float, Field(gt=0, lt=1, description="Range eps_w of the weights: clipped to [1 - eps_w, 1 + eps_w].")
    ] = 0.2
    mixing: Annotated[
        float, Field(ge=0, le=1, description="Share lambda of the weights at the first update. 0 is GRPO.")
    ] = 0.5
    mixing_decay: Annotated[
        float | None,
        Field(
            gt=0,
            le=1,
            description="Fraction of the run's updates over which `mixing` decreases linearly to 0; null keeps it. The "
            "paper decreases it over its first 50 steps.",
        ),
    ] = 1.0

    @property
    def uses_teacher(self) -> bool:
        return self.mixing > 0

    def mixing_at(self, progress: float) -> float:
        """Return the share of the weights after a fraction of the updates, `progress` in [0, 1]."""
        if self.mixing_decay is None:
            return self.mixing
        return self.mixing * max(0.0, 1 - progress / self.mixing_decay)


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
    def ignores_rewards(self) -> bool:
        return True

    @property
    def _is_advantage_times_something(self) -> bool:
        return False


ObjectiveConfig = Annotated[
    TrrdConfig | GrpoConfig | KdrlConfig | OpdConfig | ExopdConfig | EopdConfig | RlsdConfig | SftConfig,
    Field(discriminator="name"),
]
