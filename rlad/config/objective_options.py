"""Options that training objectives share: aggregation, reference KL, entropy bonus, clipping and distillation terms."""

from __future__ import annotations

import abc
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from rlad.advantages import AdvantageEstimator, ImitationMask
from rlad.config.base import or_null
from rlad.contracts import TeacherSupport

Aggregation = Literal["response_mean", "token_mean", "fixed_length"]
SampledEstimator = Literal["k2", "k3"]
Estimator = Literal["k1_reward", "k2", "k3", "topk", "full"]
Mismatch = Literal["off", "truncate", "mask"]
RewardStudent = Literal["auto", "behaviour", "current"]

ESTIMATOR_DESCRIPTION = (
    "Estimator of KL(pi, pi_T) per token. `k1_reward` adds log pi_T - log pi_old to the advantage (policy gradient). "
    "`k2` is half the squared log ratio; its expected gradient is that of the reverse KL of a token, at a fixed prefix "
    "and on-policy. `k3` is the estimator of GRPO. "
    "`topk` sums over the teacher's `top_k` likeliest tokens and one bucket for the rest. `full` sums over the "
    "vocabulary: with `teacher.send` `hidden_states` at any size. See `docs/methods.md`."
)


class EntropyBonus(BaseModel):
    """Entropy bonus: adds `coefficient * entropy` to the maximized objective.

    With `target` the coefficient is adaptive (Skywork-OR1, arXiv:2505.22312, section 4). After each update it increases
    by `delta` if the mean entropy of the trained tokens was below the target, and otherwise decreases by `delta`. It
    stays within 0 and a cap. The bonus applies only while the entropy is at or below the target.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    coefficient: Annotated[
        float,
        Field(
            ge=0,
            description="Coefficient of the mean entropy of the trained tokens, in nats. With `target`, the initial "
            "value.",
        ),
    ] = 0.0
    target: Annotated[
        float | None,
        Field(
            gt=0,
            description="Target entropy of the adaptive coefficient, in nats per token; null keeps the coefficient "
            "constant.",
        ),
    ] = None
    delta: Annotated[float, Field(gt=0, description="Change of the adaptive coefficient per update.")] = 0.005
    max_coefficient: Annotated[
        float | None,
        Field(
            gt=0,
            description="Cap of the adaptive coefficient; null is 50 `delta`, the ratio in the scripts of Skywork-OR1 "
            "(0.005 and 0.0001). Without a cap, an entropy that stays below the target lets the bonus outgrow the "
            "objective.",
        ),
    ] = None

    @model_validator(mode="after")
    def _cap_bounds_an_adaptive_coefficient(self) -> Self:
        if self.target is None and self.max_coefficient is not None:
            raise ValueError(
                f"max_coefficient requires target; got max_coefficient {self.max_coefficient:g} and target null, which "
                "keeps the coefficient constant"
            )
        if self.target is not None and self.coefficient > self.cap:
            raise ValueError(
                f"coefficient must not exceed its cap; got coefficient {self.coefficient:g} and a cap of {self.cap:g}. "
                "Raise max_coefficient, or start lower"
            )
        return self

    @property
    def is_on(self) -> bool:
        """Whether the loss has an entropy term."""
        return self.coefficient > 0 or self.target is not None

    @property
    def cap(self) -> float:
        """Largest value of the adaptive coefficient."""
        return 50 * self.delta if self.max_coefficient is None else self.max_coefficient


class ObjectiveSettings(BaseModel, abc.ABC):
    """Options shared by all objectives."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    aggregation: Annotated[
        Aggregation,
        Field(
            description="Aggregation of token losses. `response_mean`: mean over responses of the mean over tokens "
            "(the paper). `token_mean`: mean over all tokens (DAPO); training on an update then starts only when all "
            "of its groups have arrived. `fixed_length`: sum over tokens divided by `fixed_length` (Dr. GRPO)."
        ),
    ] = "response_mean"
    fixed_length: Annotated[
        int | None,
        Field(
            ge=1,
            description="Divisor of aggregation `fixed_length`, in tokens; usually `rollout.max_response_tokens`. "
            "Required by that aggregation, otherwise null.",
        ),
    ] = None
    reference_kl: Annotated[
        float,
        Field(ge=0, description="Coefficient of KL(pi, pi_ref). Above 0 the run requires a `reference` section."),
    ] = 0.0
    reference_kl_estimator: Annotated[
        SampledEstimator,
        Field(
            description="Estimator of KL(pi, pi_ref): `k3` is that of GRPO; the expected gradient of `k2` is that of "
            "the reverse KL of a token."
        ),
    ] = "k3"
    entropy_bonus: Annotated[EntropyBonus, Field(description="Entropy bonus; off by default.")] = EntropyBonus()

    @model_validator(mode="after")
    def _fixed_length_iff_used(self) -> Self:
        if (self.aggregation == "fixed_length") != (self.fixed_length is not None):
            raise ValueError(
                "aggregation `fixed_length` requires the setting `fixed_length`, and no other aggregation allows it; "
                f"got aggregation `{self.aggregation}` and fixed_length {or_null(self.fixed_length)}"
            )
        return self

    @property
    def shown_settings(self) -> dict[str, Any]:
        """Settings to show in reports: the objective's own, and shared options that differ from their defaults."""
        values = self.model_dump(mode="json")
        defaults = {
            name: field.get_default(call_default_factory=True) for name, field in type(self).model_fields.items()
        }
        own = type(self).__annotations__.keys() - {"name"}
        chosen = [name for name in values if getattr(self, name) != defaults[name] or name in own]
        return {name: values[name] for name in chosen if values[name] is not None}

    def resolved(self, *, max_staleness: int) -> Self:
        """Return the settings with values that depend on the rest of the run filled in.

        Args:
            max_staleness: Setting `training.max_staleness` of the run.
        """
        return self

    @property
    @abc.abstractmethod
    def uses_teacher(self) -> bool:
        """Whether the loss uses the teacher's log-probabilities."""

    @property
    def ignores_rewards(self) -> bool:
        """Whether rewards only affect metrics."""
        return False

    @property
    def uses_reference(self) -> bool:
        """Whether the loss uses the reference policy's log-probabilities."""
        return self.reference_kl > 0

    @property
    def teacher_support(self) -> TeacherSupport:
        """Teacher log-probabilities used in addition to the sampled tokens' ones.

        None for none, K for the teacher's K likeliest tokens, "full" for the whole vocabulary.
        """
        return None

    @property
    def corrects_mismatch(self) -> bool:
        """Whether the loss uses the sampling engine's log-probabilities in addition to the learner's own."""
        return False

    @property
    def imitation_mask(self) -> ImitationMask:
        """Responses with a distillation term.

        All of them, those without reward, or those of groups without any reward.
        """
        return "none"

    @property
    def advantage_estimator(self) -> AdvantageEstimator:
        """Estimator that turns a group's rewards into advantages."""
        return "group_std"

    @property
    def zero_advantage_gives_zero_gradient(self) -> bool:
        """Whether a response with advantage 0 can be left out of the forward pass."""
        return self._is_advantage_times_something and self.reference_kl == 0 and not self.entropy_bonus.is_on

    @property
    @abc.abstractmethod
    def _is_advantage_times_something(self) -> bool:
        """Whether a token's loss is 0 when its advantage is 0."""


class ClippedSurrogateSettings(ObjectiveSettings):
    """Options of the objectives with a clipped likelihood ratio. Defaults are those of arXiv:2602.22495."""

    eps_low: Annotated[
        float, Field(gt=0, lt=1, description="Lower clip range: the ratio is clipped below 1 - eps_low.")
    ] = 0.20
    eps_high: Annotated[
        float,
        Field(
            gt=0,
            allow_inf_nan=False,
            description="Upper clip range: the ratio is clipped above 1 + eps_high. Values above `eps_low` give "
            "clip-higher (DAPO).",
        ),
    ] = 0.28
    dual_clip: Annotated[
        float | None,
        Field(
            gt=1,
            description="Dual-clip bound c (arXiv:1912.09729). For a negative advantage A the surrogate is at least "
            "c A, so ratios above c have no gradient; null turns it off.",
        ),
    ] = None
    advantage: Annotated[
        AdvantageEstimator,
        Field(
            description="Advantage of a response with reward r. `group_std`: (r - mean) / std of the group. "
            "`group_mean_only`: r - mean (Dr. GRPO). `rloo`: r - mean of the group's other responses (RLOO)."
        ),
    ] = "group_std"
    mismatch: Annotated[
        Mismatch,
        Field(
            description="Correction of the mismatch between sampling engine and learner, w = pi_old of the learner / "
            "pi_old of the engine. `truncate` weights the surrogate by min(w, cap) (truncated importance sampling); "
            "`mask` by w if floor <= w <= cap and by 0 otherwise (IcePop has 0.5 and 5). Requires `learner.pi_old` = "
            "`recompute`."
        ),
    ] = "off"
    mismatch_cap: Annotated[
        float, Field(gt=1, allow_inf_nan=False, description="Cap of the mismatch correction's weights.")
    ] = 2.0
    mismatch_floor: Annotated[
        float | None,
        Field(gt=0, lt=1, description="Smallest weight that mismatch `mask` keeps; null is 1 / `mismatch_cap`."),
    ] = None

    @model_validator(mode="after")
    def _floor_requires_mask(self) -> Self:
        if self.mismatch_floor is not None and self.mismatch != "mask":
            raise ValueError(
                f"mismatch_floor requires mismatch `mask`; got mismatch `{self.mismatch}` and mismatch_floor "
                f"{self.mismatch_floor:g}. Choose `mask`, or remove the floor"
            )
        return self

    @property
    def mismatch_bounds(self) -> tuple[float, float]:
        """Smallest and largest weight that `mask` keeps."""
        return (1 / self.mismatch_cap if self.mismatch_floor is None else self.mismatch_floor), self.mismatch_cap

    @property
    def corrects_mismatch(self) -> bool:
        return self.mismatch != "off"

    @property
    def advantage_estimator(self) -> AdvantageEstimator:
        return self.advantage

    @property
    def _is_advantage_times_something(self) -> bool:
        return True


class RewardStudentSettings(BaseModel):
    """Option of the objectives whose reward is a log ratio of teacher and student (mixin)."""

    reward_student: Annotated[
        RewardStudent,
        Field(
            description="Student in the reward of `k1_reward`. `behaviour`: log pi_T - log pi_old. `current`: "
            "log pi_T - log pi of the weights that are trained, without gradient; with old samples this is the "
            "gradient of the reverse KL of the current student (AsyncOPD, arXiv:2606.24143). `auto`: `current` if "
            "`training.max_staleness` is above 0, else `behaviour`. The other estimators always use the current "
            "student."
        ),
    ] = "auto"

    def resolved(self, *, max_staleness: int) -> Self:
        """Return the settings with `reward_student` resolved."""
        if self.reward_student != "auto":
            return self
        return self.model_copy(update={"reward_student": "current" if max_staleness else "behaviour"})


class ImitationSettings(RewardStudentSettings):
    """Options of the objectives with a distillation term (mixin)."""

    estimator: Annotated[
        Estimator,
        Field(description=ESTIMATOR_DESCRIPTION),
    ]
    top_k: Annotated[
        int | None,
        Field(ge=1, description="Number of tokens of the `topk` estimator. Required by it, otherwise null."),
    ] = None

    @field_validator("estimator", mode="before")
    @classmethod
    def _k1_is_no_loss(cls, value: Any) -> Any:
        if value == "k1":
            raise ValueError(
                "estimator `k1` is not supported as a loss, because its gradient does not depend on the teacher; use "
                "`k1_reward`"
            )
        return value

    @model_validator(mode="after")
    def _top_k_iff_used(self) -> Any:
        if (self.estimator == "topk") != (self.top_k is not None):
            raise ValueError(
                "estimator `topk` requires the setting `top_k`, and no other estimator allows it; got estimator "
                f"`{self.estimator}` and top_k {or_null(self.top_k)}"
            )
        return self

    @property
    def teacher_support(self) -> TeacherSupport:
        return "full" if self.estimator == "full" else self.top_k
