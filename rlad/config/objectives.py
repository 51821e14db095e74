"""The settings of every training objective, and the union of them. What they compute is in `rlad.objectives`, one file each, and needs torch; this does not."""

from __future__ import annotations

import abc
import math
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from rlad.advantages import AdvantageEstimator, ImitationMask
from rlad.contracts import TeacherSupport

Aggregation = Literal["response_mean", "token_mean", "fixed_length"]
SampledEstimator = Literal["k2", "k3"]
Estimator = Literal["k1_reward", "k2", "k3", "topk", "full"]
TeacherClampGradient = Literal["clipped", "straight_through"]
Mismatch = Literal["off", "truncate", "mask"]


class EntropyBonus(BaseModel):
    """Adds `coefficient * entropy` to what is maximised. With `target` the coefficient is adaptive (Skywork-OR1, arXiv:2505.22312, section 4):
    after each update it rises by `delta` where the mean entropy of the trained tokens was below the target and falls by as much, not below 0,
    where it was not; and it counts only while the entropy is at or below the target."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    coefficient: Annotated[
        float,
        Field(ge=0, description="Of the mean entropy of the trained tokens, in nats; with `target`, where it starts."),
    ] = 0.0
    target: Annotated[
        float | None,
        Field(gt=0, description="Entropy, in nats a token, below which the bonus grows; none keeps it constant."),
    ] = None
    delta: Annotated[float, Field(gt=0, description="How much one update changes an adaptive coefficient.")] = 0.005

    @property
    def is_on(self) -> bool:
        return self.coefficient > 0 or self.target is not None


class ObjectiveSettings(BaseModel, abc.ABC):
    """Options of every objective."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    aggregation: Annotated[
        Aggregation,
        Field(
            description="Mean over responses of means over tokens (the paper); mean over all tokens (DAPO; an update's groups are then trained on "
            "when all are there); or sum over tokens by a fixed length (Dr. GRPO)."
        ),
    ] = "response_mean"
    fixed_length: Annotated[
        int | None,
        Field(ge=1, description="Tokens that `fixed_length` divides by; usually rollout.max_response_tokens."),
    ] = None
    reference_kl: Annotated[
        float, Field(ge=0, description="Coefficient of KL(pi, pi_ref); above 0 the run needs a `reference`.")
    ] = 0.0
    reference_kl_estimator: Annotated[
        SampledEstimator, Field(description="k3 is GRPO's own; k2 has the gradient of the reverse KL.")
    ] = "k3"
    entropy_bonus: EntropyBonus = EntropyBonus()

    @model_validator(mode="after")
    def _fixed_length_iff_used(self) -> Self:
        if (self.aggregation == "fixed_length") != (self.fixed_length is not None):
            raise ValueError(
                "aggregation `fixed_length` and the setting `fixed_length` go together: set both or neither"
            )
        return self

    @property
    def shown_settings(self) -> dict[str, Any]:
        """What a person wants to see of the settings: the objective's own, and of the options those that are not as by default."""
        values = self.model_dump(mode="json")
        defaults = {
            name: field.get_default(call_default_factory=True) for name, field in type(self).model_fields.items()
        }
        own = type(self).__annotations__.keys() - {"name"}
        chosen = [name for name in values if getattr(self, name) != defaults[name] or name in own]
        return {name: values[name] for name in chosen if values[name] is not None}

    @property
    @abc.abstractmethod
    def uses_teacher(self) -> bool:
        """Whether the loss needs the teacher's log-probabilities."""

    @property
    def uses_reference(self) -> bool:
        """Whether the loss needs the frozen reference's log-probabilities."""
        return self.reference_kl > 0

    @property
    def teacher_support(self) -> TeacherSupport:
        """Which of the teacher's log-probabilities are needed beside those of the sampled tokens: of its K most likely tokens, or of all."""
        return None

    @property
    def corrects_mismatch(self) -> bool:
        """Whether the sampling engine's log-probabilities are needed beside the learner's own."""
        return False

    @property
    def imitation_mask(self) -> ImitationMask:
        """Which responses have a distillation term: all, those that earned no reward, or those of groups in which none did."""
        return "none"

    @property
    def advantage_estimator(self) -> AdvantageEstimator:
        return "group_std"

    @property
    def zero_advantage_gives_zero_gradient(self) -> bool:
        """Whether a response with advantage 0 may be left out of the forward pass."""
        return self._is_advantage_times_something and self.reference_kl == 0 and not self.entropy_bonus.is_on

    @property
    @abc.abstractmethod
    def _is_advantage_times_something(self) -> bool:
        """Whether each token's own loss vanishes with its advantage."""


class ClippedSurrogateSettings(ObjectiveSettings):
    """Options of the objectives with a likelihood ratio; defaults of arXiv:2602.22495."""

    eps_low: Annotated[float, Field(gt=0, lt=1, description="The ratio is clipped below 1 minus this.")] = 0.20
    eps_high: Annotated[
        float,
        Field(
            gt=0,
            allow_inf_nan=False,
            description="The ratio is clipped above 1 plus this; above eps_low it is clip-higher (DAPO).",
        ),
    ] = 0.28
    dual_clip: Annotated[
        float | None,
        Field(
            gt=1,
            description="c: where A < 0 the surrogate is at least c A (arXiv:1912.09729), so a ratio above c gives no gradient.",
        ),
    ] = None
    advantage: Annotated[
        AdvantageEstimator,
        Field(
            description="(r - mean) / std of the group; without the division (Dr. GRPO); or r minus the mean of the others (RLOO)."
        ),
    ] = "group_std"
    mismatch: Annotated[
        Mismatch,
        Field(
            description="Correction of the sampling engine's mismatch, w = pi_old of the learner / pi_old of the engine: weight the surrogate by "
            "min(w, cap) (truncated importance sampling), or by w where 1/cap <= w <= cap and else by 0. Needs learner.pi_old `recompute`."
        ),
    ] = "off"
    mismatch_cap: Annotated[float, Field(gt=1, allow_inf_nan=False, description="cap of the correction.")] = 2.0

    @property
    def corrects_mismatch(self) -> bool:
        return self.mismatch != "off"

    @property
    def advantage_estimator(self) -> AdvantageEstimator:
        return self.advantage

    @property
    def _is_advantage_times_something(self) -> bool:
        return True


class ImitationSettings(BaseModel):
    """Mixed into the settings of an objective with a distillation term."""

    estimator: Annotated[
        Estimator,
        Field(
            description="Of KL(pi, pi_T), per token. `k1_reward`: log pi_T - log pi_old is added to the advantage, through the policy gradient; "
            "`k2`: squared log ratio / 2, whose gradient is that of the reverse KL; `k3`; `topk`: over the teacher's `top_k` tokens and one bucket "
            "for the rest; `full`: over the vocabulary (tiny models)."
        ),
    ]
    top_k: Annotated[int | None, Field(ge=1, description="Tokens of the `topk` estimator.")] = None

    @field_validator("estimator", mode="before")
    @classmethod
    def _k1_is_no_loss(cls, value: Any) -> Any:
        if value == "k1":
            raise ValueError("k1 as a loss has a gradient that ignores the teacher; as a reward it works: k1_reward")
        return value

    @model_validator(mode="after")
    def _top_k_iff_used(self) -> Any:
        if (self.estimator == "topk") != (self.top_k is not None):
            raise ValueError("estimator `topk` and the setting `top_k` go together: set both or neither")
        return self

    @property
    def teacher_support(self) -> TeacherSupport:
        return "full" if self.estimator == "full" else self.top_k


class TrrdConfig(ClippedSurrogateSettings):
    """`min(r A, clip(r) A)` with `log r = alpha log(pi / pi_old) + (1 - alpha) clamp(log(pi / pi_T), -c, c)` (arXiv:2602.22495, Eq. 3-5, App. B).

    The teacher scales an update and moves the point where it is clipped; it never turns its sign. With alpha below 1 the ratio is not 1 at
    pi = pi_old: tokens are clipped from the first step, unless alpha is so near 1 that `(1 - alpha) c` stays within the clip range.
    """

    name: Literal["trrd"] = "trrd"
    alpha: Annotated[
        float, Field(ge=0, le=1, description="Weight of pi_old in the anchor: 1 is GRPO, towards 0 the teacher alone.")
    ] = 0.5
    teacher_log_ratio_clamp: Annotated[
        float, Field(gt=0, description="c: the log ratio to the teacher is clamped to [-c, c], in nats.")
    ] = 1.0
    teacher_clamp_gradient: Annotated[
        TeacherClampGradient,
        Field(
            description="Outside the clamp d log r / d log pi is alpha (`clipped`, as in the paper), or 1 (`straight_through`: value only)."
        ),
    ] = "clipped"

    @property
    def uses_teacher(self) -> bool:
        return self.alpha < 1


class GrpoConfig(ClippedSurrogateSettings):
    """`min(r A, clip(r) A)` with `log r = log pi - log pi_old` (arXiv:2602.22495, Eq. 1). Uses no teacher."""

    name: Literal["grpo"] = "grpo"

    @property
    def uses_teacher(self) -> bool:
        return False


class KdrlConfig(ImitationSettings, ClippedSurrogateSettings):
    """GRPO's surrogate minus `beta KL(pi, pi_T)` on the student's own responses (arXiv:2602.22495, Eq. 2; arXiv:2506.02208).

    Unlike TRRD the teacher pulls whatever the reward says: a token of a right answer that the teacher dislikes is pushed down.
    """

    name: Literal["kdrl"] = "kdrl"
    estimator: Annotated[Estimator, Field(description="Of KL(pi, pi_T): see docs/methods.md.")] = "k2"
    beta: Annotated[
        float,
        Field(ge=0, allow_inf_nan=False, description="Coefficient of the divergence, at the first update. Tune it."),
    ] = 2e-3
    beta_end: Annotated[
        float | None,
        Field(ge=0, allow_inf_nan=False, description="Coefficient at the last update; none keeps it constant."),
    ] = None
    beta_schedule: Annotated[
        Literal["linear", "cosine"], Field(description="How the coefficient goes from `beta` to `beta_end`.")
    ] = "linear"
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


class SftConfig(ObjectiveSettings):
    """`-log pi` of every token of the responses. Offline distillation where a teacher wrote them and a verifier chose them; uses neither at training."""

    name: Literal["sft"] = "sft"

    @property
    def uses_teacher(self) -> bool:
        return False

    @property
    def _is_advantage_times_something(self) -> bool:
        return False


ObjectiveConfig = Annotated[TrrdConfig | GrpoConfig | KdrlConfig | OpdConfig | SftConfig, Field(discriminator="name")]
