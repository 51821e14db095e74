"""The pydantic models of a run. Every field's description is the reference that `docs/configuration.md` prints."""

from __future__ import annotations

from typing import Annotated, Any, Self

from pydantic import BeforeValidator, Field, model_validator

from rlad.advantages import OverlongPenalty
from rlad.config.base import ConfigModel as ConfigModel
from rlad.config.base import PositiveInt
from rlad.config.evaluation import EvaluationConfig
from rlad.config.learner import CheckpointConfig, LearnerConfig, WeightsConfig
from rlad.config.objectives import ObjectiveConfig
from rlad.config.prompts import PromptSource
from rlad.config.rollout import OfflineConfig, RolloutConfig, VerifierPoolConfig
from rlad.config.shared import ClusterConfig, ModelConfig
from rlad.config.teachers import AnyTeacherConfig, ReferenceConfig, SharedTeacherConfig, TeacherConfig
from rlad.verifiers import VerifierConfig

# Part of a Serve application's name, of a metric's, and of a setting's on the command line.
TeacherId = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$", max_length=40)]
Weight = Annotated[float, Field(gt=0, allow_inf_nan=False)]


def _alone(value: Any) -> Any:
    """A single teacher's id as the mapping it is short for."""
    return {value: 1.0} if isinstance(value, str) else value


TeacherMix = Annotated[dict[TeacherId, Weight], Field(min_length=1), BeforeValidator(_alone)]
"""Who scores a prompt's responses: an id, or ids with the weights that each teacher's probabilities have in the mixture of all."""


class RewardConfig(ConfigModel):
    """What is done to the verifiers' rewards before advantages are made of them."""

    overlong_buffer_tokens: PositiveInt | None = Field(
        None,
        description="Soft overlong punishment (DAPO): over the last so many tokens of the budget a response's reward falls linearly; none turns it off.",
    )
    overlong_penalty: Annotated[float, Field(gt=0)] = Field(1.0, description="By how much, at the full budget.")


class TrainingConfig(ConfigModel):
    steps: PositiveInt = Field(description="Training steps: batches of prompts sampled, scored and trained on.")
    prompts_per_step: PositiveInt = 32
    updates_per_step: PositiveInt = Field(
        1, description="Optimizer steps on one batch: its groups, in prompt order, cut into so many equal mini-batches."
    )
    max_refills: Annotated[int, Field(ge=0)] = Field(
        0,
        description="Dynamic sampling (DAPO): a group with equal rewards is dropped and the next prompt takes its place, up to so many times a step; "
        "behind that such groups are kept. 0 turns it off.",
    )
    max_staleness: Annotated[int, Field(ge=0)] = Field(
        0,
        description="Versions that a token may be behind the weights that are trained on it. 0: strictly on-policy. k: the samplers work ahead by up to k "
        "steps, and take new weights in mid-generation.",
    )

    @model_validator(mode="after")
    def _minibatches_divide(self) -> Self:
        if self.prompts_per_step % self.updates_per_step:
            raise ValueError(
                f"updates_per_step {self.updates_per_step} must divide prompts_per_step {self.prompts_per_step}"
            )
        return self


class RunConfig(ConfigModel):
    """One distillation run."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=80)]
    seed: int = 0
    student: ModelConfig
    teacher: AnyTeacherConfig | None = Field(
        None, description="Left out where the objective uses no teacher, or there are several `teachers`."
    )
    teachers: dict[TeacherId, AnyTeacherConfig] = Field(
        {}, description="Several teachers by id, in place of `teacher`."
    )
    teacher_routes: dict[str, TeacherMix] = Field(
        {},
        description="Who teaches a task: an id, or `{ID: weight}` for the mixture of several. A prompt's metadata `teacher_id` goes before it. "
        "One teacher alone needs no routes.",
    )
    reference: ReferenceConfig | None = Field(
        None, description="Left out where the objective uses no reference; `{}` takes the student as it starts."
    )
    objective: ObjectiveConfig
    offline: OfflineConfig | None = Field(
        None, description="The teacher's traces, for `rlad offline`. Only with objective `sft`."
    )
    prompts: PromptSource
    verifiers: dict[str, VerifierConfig] = Field(description="By the prompts' `task`.")
    verifier_pool: VerifierPoolConfig = VerifierPoolConfig()
    rewards: RewardConfig = RewardConfig()
    rollout: RolloutConfig = RolloutConfig()
    learner: LearnerConfig = LearnerConfig()
    training: TrainingConfig
    evaluation: EvaluationConfig
    weights: WeightsConfig = WeightsConfig()
    checkpoints: CheckpointConfig = CheckpointConfig()
    cluster: ClusterConfig = ClusterConfig()

    @model_validator(mode="after")
    def _offline_iff_sft(self) -> Self:
        if self.offline is None and self.objective.name == "sft":
            raise ValueError(
                "objective 'sft' trains on the teacher's traces: add an `offline:` section (it may be empty: `offline: {}`)"
            )
        if self.offline is not None and self.objective.name != "sft":
            raise ValueError(
                f"objective {self.objective.name!r} trains on the student's own responses: remove the `offline:` section, or choose `sft`"
            )
        if self.offline is not None and self.objective.uses_reference:
            raise ValueError(
                "an offline run scores its traces by no frozen reference: leave objective.reference_kl at 0"
            )
        if self.offline is not None and self.rollout.temperature != 1.0:
            raise ValueError(
                "cross-entropy is taken at temperature 1: leave rollout.temperature at 1 (offline.temperature is the teacher's)"
            )
        return self

    @model_validator(mode="after")
    def _teachers_iff_needed(self) -> Self:
        if self.offline is not None:
            if self.teachers or self.teacher_routes:
                raise ValueError(
                    "an offline run has one teacher, given as `teacher:`, which writes the traces: remove `teachers:` and `teacher_routes:`"
                )
            if self.offline.traces is None and self.teacher is None:
                raise ValueError(
                    "an offline run needs a teacher, which writes the traces: add a `teacher:` section, or set offline.traces to a folder of them"
                )
            if self.teacher is not None and not isinstance(self.teacher, TeacherConfig):
                raise ValueError(
                    "an offline run samples from its teacher, and a shared one only scores: give the teacher's `path:`"
                )
            return self
        if self.teacher is not None and self.teachers:
            raise ValueError(
                "one teacher is given as `teacher:`, several as `teachers:`; remove one of the two sections"
            )
        if self.objective.uses_teacher and not self.teachers_by_id:
            raise ValueError(
                f"objective {self.objective.name!r} needs a teacher: add a `teacher:` section with its path, or `teachers:` with several"
            )
        unused = [name for name in ("teacher", "teachers", "teacher_routes") if getattr(self, name)]
        if unused and not self.objective.uses_teacher:
            raise ValueError(
                f"objective {self.objective.name!r} uses no teacher: remove the `{unused[0]}:` section, it would hold machines for nothing"
            )
        return self

    @model_validator(mode="after")
    def _reference_iff_needed(self) -> Self:
        if self.needs_reference and self.reference is None:
            raise ValueError(
                f"objective {self.objective.name!r} needs a frozen reference policy: add a `reference:` section, `reference: {{}}` takes the student "
                "as it starts"
            )
        if self.reference is not None and not self.needs_reference:
            raise ValueError(
                f"objective {self.objective.name!r} uses no reference: remove the `reference:` section, it would hold machines for nothing"
            )
        return self

    @model_validator(mode="after")
    def _routes_lead_to_teachers(self) -> Self:
        for task, mix in self.teacher_routes.items():
            if unknown := sorted(mix.keys() - self.teachers_by_id.keys()):
                raise ValueError(
                    f"teacher_routes.{task} names the unknown teacher {unknown[0]}: there are {', '.join(self.teachers_by_id)}"
                )
            if task not in self.verifiers:
                raise ValueError(
                    f"teacher_routes has a route for task {task}, which has no verifier: there are {', '.join(self.verifiers)}"
                )
            if len(mix) > 1 and self.objective.teacher_support is not None:
                raise ValueError(
                    f"teacher_routes.{task} mixes several teachers, and objective {self.objective.name!r} wants each token's likeliest tokens of one: "
                    "route the task to one teacher"
                )
        return self

    @model_validator(mode="after")
    def _engines_can_score(self) -> Self:
        for pool, model in self.scoring_pools.items():
            section = pool.replace("teacher-", "teachers.", 1)
            if model.engine == "vllm" and self.rollout.temperature != 1.0:
                raise ValueError(
                    f"the vllm teacher engine scores at temperature 1 only: set rollout.temperature to 1, or {section}.engine to transformers"
                )
            if model.engine == "vllm" and self.objective.teacher_support == "full" and pool != "reference":
                raise ValueError(
                    f"objective {self.objective.name!r} wants the teacher's full vocabulary, which the vllm engine does not give: set {section}.engine "
                    "to transformers, or take a number of likeliest tokens"
                )
        return self

    @model_validator(mode="after")
    def _corrections_have_what_they_need(self) -> Self:
        if self.objective.corrects_mismatch and self.learner.pi_old != "recompute":
            raise ValueError(
                "objective.mismatch corrects a pi_old that the learner computed: set learner.pi_old to recompute "
                "(with pi_old from the rollout the likelihood ratio itself corrects the mismatch)"
            )
        if self.learner.pi_old == "recompute" and self.training.updates_per_step > 1:
            raise ValueError(
                f"learner.pi_old `recompute` takes pi_old from the first forward pass of a step, so it needs training.updates_per_step 1, got "
                f"{self.training.updates_per_step}; with several updates use `rollout`"
            )
        if self.learner.pi_old == "recompute" and self.training.max_staleness and not self.objective.corrects_mismatch:
            raise ValueError(
                "learner.pi_old `recompute` takes the weights that are trained for those that sampled, which with training.max_staleness above 0 are older: "
                "use `rollout`, or correct the difference with objective.mismatch"
            )
        if self.training.max_refills and self.objective.name in ("opd", "sft"):
            raise ValueError(
                f"training.max_refills drops groups with equal rewards, but objective {self.objective.name!r} does not look at rewards"
            )
        buffer, budget = self.rewards.overlong_buffer_tokens, self.rollout.max_response_tokens
        if buffer is not None and buffer > budget:
            raise ValueError(
                f"rewards.overlong_buffer_tokens {buffer} is more than rollout.max_response_tokens {budget}"
            )
        return self

    @model_validator(mode="after")
    def _weights_can_travel(self) -> Self:
        transport, learner, rollout = self.weights.transport, self.learner, self.rollout
        if transport == "object_store":
            return self
        given = f"learner.gpus_per_rank is {learner.gpus_per_rank:g} and rollout.gpus_per_worker {rollout.gpus_per_worker:g}"
        if self.training.updates_per_step > 1:
            raise ValueError(
                f"weights.transport {transport!r} sends the weights that the learner holds, which between the updates of a step are of no version, and a "
                "worker may join at any time: set training.updates_per_step to 1, or take object_store"
            )
        if transport == "nccl" and (learner.gpus_per_rank < 1 or rollout.gpus_per_worker < rollout.tensor_parallel):
            raise ValueError(
                f"weights.transport 'nccl' needs a whole GPU for every rank of the learner and one for each of an engine's {rollout.tensor_parallel} "
                f"processes, but {given}: raise them, or take object_store"
            )
        if transport == "gloo" and (learner.gpus_per_rank or rollout.gpus_per_worker):
            raise ValueError(
                f"weights.transport 'gloo' is for runs without GPUs, but {given}: take nccl or object_store"
            )
        if transport == "ipc":
            self._require_one_shared_gpu(given)
        return self

    def _require_one_shared_gpu(self, given: str) -> None:
        learner, rollout = self.learner, self.rollout
        if (learner.ranks, rollout.workers, rollout.max_workers, rollout.tensor_parallel) != (1, 1, 1, 1):
            raise ValueError(
                "weights.transport 'ipc' is for one learner rank and one rollout worker on the same GPU, since no pools of several are placed in pairs: "
                "set learner.ranks, rollout.workers, rollout.max_workers and rollout.tensor_parallel to 1, or take nccl"
            )
        if not (
            learner.gpus_per_rank and rollout.gpus_per_worker and learner.gpus_per_rank + rollout.gpus_per_worker <= 1
        ):
            raise ValueError(
                f"weights.transport 'ipc' needs learner and rollout worker on one GPU, as shares of it, but {given}: for example 0.4 and 0.5, on a cluster "
                "with one GPU"
            )
        if self.cluster.pool_labels:
            raise ValueError(
                "cluster.pool_labels puts learner and rollout worker on nodes of their own, weights.transport 'ipc' wants them on one GPU"
            )
        if rollout.gpu_memory_fraction > rollout.gpus_per_worker:
            raise ValueError(
                f"with weights.transport 'ipc' rollout.gpu_memory_fraction {rollout.gpu_memory_fraction:g} leaves the learner too little of their GPU: set "
                f"it to at most rollout.gpus_per_worker, {rollout.gpus_per_worker:g}"
            )

    @property
    def overlong_penalty(self) -> OverlongPenalty | None:
        """What a response's length costs it."""
        if self.rewards.overlong_buffer_tokens is None:
            return None
        return OverlongPenalty(
            max_tokens=self.rollout.max_response_tokens,
            buffer_tokens=self.rewards.overlong_buffer_tokens,
            penalty=self.rewards.overlong_penalty,
        )

    @property
    def needs_teacher(self) -> bool:
        """Whether a teacher scores, or writes traces."""
        return self.objective.uses_teacher or (self.offline is not None and self.offline.traces is None)

    @property
    def needs_reference(self) -> bool:
        return self.objective.uses_reference

    @property
    def teachers_by_id(self) -> dict[str, TeacherConfig | SharedTeacherConfig]:
        """All teachers; the only one, given as `teacher`, has that as its id."""
        return {"teacher": self.teacher} if self.teacher is not None else dict(self.teachers)

    @property
    def frozen_models(self) -> dict[str, TeacherConfig]:
        """Every frozen model that the run starts, by its pool: those that score, or the teacher that writes an offline run's traces."""
        writer = self.teacher if self.offline is not None else None
        return ({"teacher": writer} if isinstance(writer, TeacherConfig) else {}) | self.scoring_pools

    @property
    def teacher_pools(self) -> dict[str, str]:
        """The pool of every teacher that scores, by the teacher's id; none where a teacher only writes traces."""
        if not self.objective.uses_teacher:
            return {}
        return (
            {"teacher": "teacher"} if self.teacher is not None else {name: f"teacher-{name}" for name in self.teachers}
        )

    @property
    def scoring_pools(self) -> dict[str, TeacherConfig]:
        """Every frozen model that scores and that the run starts, by its pool: `teacher`, or `teacher-ID` for each of several; `reference`."""
        teachers = {pool: self.teachers_by_id[name] for name, pool in self.teacher_pools.items()}
        pools = {pool: teacher for pool, teacher in teachers.items() if isinstance(teacher, TeacherConfig)}
        if self.reference is not None:
            path = self.student.path if self.reference.path is None else self.reference.path
            pools["reference"] = TeacherConfig.model_validate({**self.reference.model_dump(), "path": path})
        return pools

    @property
    def shared_teachers(self) -> dict[str, SharedTeacherConfig]:
        """Every teacher that is there without the run, by the pool it would be; they take nothing of the run's machines."""
        teachers = {pool: self.teachers_by_id[name] for name, pool in self.teacher_pools.items()}
        return {pool: teacher for pool, teacher in teachers.items() if not isinstance(teacher, TeacherConfig)}
