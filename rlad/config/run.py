"""Configuration of a run.

The descriptions of the fields are the text of the reference page `docs/configuration.md`.
"""

from __future__ import annotations

from typing import Annotated, Any, Self

from pydantic import BeforeValidator, Field, model_validator

from rlad.advantages import OverlongPenalty
from rlad.config.base import ConfigModel, PositiveInt, or_null
from rlad.config.evaluation import EvaluationConfig
from rlad.config.learner import CheckpointConfig, LearnerConfig, TrainingConfig, WeightsConfig
from rlad.config.monitoring.cost import CostConfig
from rlad.config.monitoring.samples import SamplesConfig
from rlad.config.monitoring.trackers import TensorBoardTracker, TrackingConfig
from rlad.config.objectives import ObjectiveConfig
from rlad.config.prompts import PromptSource
from rlad.config.rollout import OfflineConfig, RolloutConfig, VerifierPoolConfig
from rlad.config.shared import ClusterConfig, FailureConfig, ModelConfig
from rlad.config.teachers import AnyTeacherConfig, ReferenceConfig, SharedTeacherConfig, TeacherConfig, check_sends
from rlad.contracts import TeacherSupport
from rlad.verifiers import VerifierConfig

# Longest sequence of a float32 learner on GPU. Its attention matrix takes 2 GB at 32 heads, several times.
_FLOAT32_TOKENS = 4096

# Part of the name of a Serve application, of a metric, and of a setting on the command line.
TeacherId = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$", max_length=40)]
Weight = Annotated[float, Field(gt=0, allow_inf_nan=False)]


def _expand_single_teacher(value: Any) -> Any:
    """Expand a single teacher id to the mapping that it abbreviates."""
    return {value: 1.0} if isinstance(value, str) else value


TeacherMix = Annotated[dict[TeacherId, Weight], Field(min_length=1), BeforeValidator(_expand_single_teacher)]
"""Teachers of a prompt: an id, or ids with the weights of their probabilities in the mixture."""


class RewardConfig(ConfigModel):
    """Reward shaping, applied to the verifiers' rewards before advantages are computed."""

    overlong_buffer_tokens: PositiveInt | None = Field(
        None,
        description="Soft overlong punishment (DAPO): the reward decreases linearly over the last N tokens before "
        "`rollout.max_response_tokens`; null turns it off.",
    )
    overlong_penalty: Annotated[float, Field(gt=0)] = Field(
        1.0, description="Reduction of the reward at `rollout.max_response_tokens`."
    )


class RunConfig(ConfigModel):
    """Settings of one run."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=80)] = Field(
        description="Name of the run. The default run directory is `runs/NAME`."
    )
    seed: int = Field(0, description="Random seed of prompt order and sampling.")
    student: ModelConfig = Field(description="The model to train.")
    teacher: AnyTeacherConfig | None = Field(
        None,
        description="The teacher. Leave it out if the objective uses none, or if `teachers` lists several.",
    )
    teachers: dict[TeacherId, AnyTeacherConfig] = Field({}, description="Several teachers by id, instead of `teacher`.")
    teacher_routes: dict[str, TeacherMix] = Field(
        {},
        description="Teacher of each task: an id, or `{ID: weight}` for a mixture of teachers. The key `teacher_id` in "
        "a prompt's metadata takes precedence. Not needed with a single teacher.",
    )
    reference: ReferenceConfig | None = Field(
        None,
        description="The reference policy; `{}` uses the initial student. Leave it out if the objective uses none.",
    )
    objective: ObjectiveConfig = Field(description="The training objective.")
    offline: OfflineConfig | None = Field(
        None, description="Offline distillation on traces of the teacher. Requires objective `sft`; null means online."
    )
    prompts: PromptSource = Field(description="Source of the training prompts.")
    verifiers: dict[str, VerifierConfig] = Field(description="Verifiers by the prompts' `task`.")
    verifier_pool: VerifierPoolConfig = Field(VerifierPoolConfig(), description="Verifier actors.")
    rewards: RewardConfig = Field(RewardConfig(), description="Reward shaping.")
    rollout: RolloutConfig = Field(RolloutConfig(), description="Rollout workers.")
    learner: LearnerConfig = Field(LearnerConfig(), description="The learner.")
    training: TrainingConfig = Field(description="The training loop.")
    evaluation: EvaluationConfig = Field(description="Evaluation before, during and after training.")
    weights: WeightsConfig = Field(WeightsConfig(), description="Weight updates.")
    checkpoints: CheckpointConfig = Field(CheckpointConfig(), description="Checkpoints.")
    samples: SamplesConfig = Field(SamplesConfig(), description="Log of sampled groups.")
    tracking: TrackingConfig = Field(
        [TensorBoardTracker()],
        description="Experiment trackers: names, such as `[tensorboard, wandb]`, or sections with settings.",
    )
    cost: CostConfig = Field(CostConfig(), description="Prices and budget.")
    failures: FailureConfig = Field(FailureConfig(), description="Failure handling.")
    cluster: ClusterConfig = Field(ClusterConfig(), description="Ray cluster.")

    @model_validator(mode="after")
    def _offline_requires_sft(self) -> Self:
        if self.offline is None:
            if self.objective.name == "sft":
                raise ValueError(
                    "objective 'sft' requires an `offline` section; got null. Add `offline: {}` to use its defaults"
                )
            return self
        if self.objective.name != "sft":
            raise ValueError(
                f"the `offline` section requires objective 'sft'; got {self.objective.name!r}, which trains on the "
                "student's responses. Remove the `offline` section, or choose 'sft'"
            )
        if self.objective.uses_reference:
            raise ValueError(
                "offline runs do not support a reference policy; got objective.reference_kl "
                f"{self.objective.reference_kl:g}. Set it to 0"
            )
        if self.rollout.temperature != 1.0:
            raise ValueError(
                f"offline runs require rollout.temperature 1; got {self.rollout.temperature:g}. The teacher's sampling "
                "temperature is offline.temperature"
            )
        return self

    @model_validator(mode="after")
    def _teachers_match_objective(self) -> Self:
        if self.offline is not None:
            self._require_offline_teacher(self.offline)
            return self
        if self.teacher is not None and self.teachers:
            raise ValueError("`teacher` and `teachers` exclude each other; got both. Remove one of the two sections")
        if self.objective.uses_teacher and not self.teachers_by_id:
            raise ValueError(
                f"objective {self.objective.name!r} requires a teacher; got none. Add a `teacher` section, or "
                "`teachers` with several"
            )
        unused = [name for name in ("teacher", "teachers", "teacher_routes") if getattr(self, name)]
        if unused and not self.objective.uses_teacher:
            raise ValueError(
                f"objective {self.objective.name!r} uses no teacher; got a `{unused[0]}` section. Remove it, because "
                "it would reserve resources without using them"
            )
        return self

    def _require_offline_teacher(self, offline: OfflineConfig) -> None:
        if self.teachers or self.teacher_routes:
            raise ValueError(
                "offline runs support one teacher, given as `teacher`; remove the sections `teachers` and "
                "`teacher_routes`"
            )
        if offline.traces is None and self.teacher is None:
            raise ValueError(
                "offline runs require a teacher that generates traces; got none. Add a `teacher` section, or set "
                "offline.traces to the directory of existing traces"
            )
        if self.teacher is not None and not isinstance(self.teacher, TeacherConfig):
            raise ValueError(
                f"offline runs sample from the teacher, but a shared teacher only scores; got {self.teacher.label}. "
                "Set teacher.path"
            )
        if self.teacher is not None and self.teacher.prompt_template is not None:
            raise ValueError(
                "offline runs do not support teacher.prompt_template, because the teacher answers the student's prompts"
                "; remove it"
            )

    @model_validator(mode="after")
    def _reference_matches_objective(self) -> Self:
        if self.needs_reference and self.reference is None:
            raise ValueError(
                f"objective {self.objective.name!r} with these settings requires a `reference` section; got null. "
                "`reference: {}` uses the initial student"
            )
        if self.reference is not None and not self.needs_reference:
            raise ValueError(
                f"objective {self.objective.name!r} uses no reference policy; got a `reference` section. Remove it, "
                "because it would reserve resources without using them"
            )
        return self

    @model_validator(mode="after")
    def _routes_name_teachers_and_tasks(self) -> Self:
        for task, mix in self.teacher_routes.items():
            if unknown := sorted(mix.keys() - self.teachers_by_id.keys()):
                raise ValueError(
                    f"teacher_routes.{task}: unknown teacher {unknown[0]}; expected one of "
                    f"{', '.join(self.teachers_by_id)}"
                )
            if task not in self.verifiers:
                raise ValueError(
                    f"teacher_routes.{task}: task {task} has no verifier; expected one of {', '.join(self.verifiers)}"
                )
            if len(mix) > 1 and self.objective.teacher_support is not None:
                raise ValueError(
                    f"teacher_routes.{task}: objective {self.objective.name!r} with this estimator does not support "
                    f"mixtures of teachers; got {', '.join(mix)}. Route the task to one teacher"
                )
        return self

    @model_validator(mode="after")
    def _engines_support_the_scores(self) -> Self:
        for pool, model in self.scoring_pools.items():
            section = pool.replace("teacher-", "teachers.", 1)
            if model.engine == "vllm" and model.send == "logprobs" and self.rollout.temperature != 1.0:
                raise ValueError(
                    f"{section}.engine 'vllm' scores only at temperature 1; got rollout.temperature "
                    f"{self.rollout.temperature:g}. Set rollout.temperature to 1, or {section}.engine to transformers"
                )
            if model.engine == "vllm" and self.teacher_support == "full" and pool != "reference":
                raise ValueError(
                    f"objective.estimator 'full' requires the teacher's full vocabulary, which {section}.engine 'vllm' "
                    f"does not return as log-probabilities. Set {section}.send to hidden_states, or {section}.engine "
                    "to transformers"
                )
        return self

    @model_validator(mode="after")
    def _hidden_states_have_a_use(self) -> Self:
        check_sends(self.objective, self.teachers_by_id)
        return self

    @model_validator(mode="after")
    def _corrections_have_their_inputs(self) -> Self:
        if self.objective.corrects_mismatch and self.learner.pi_old != "recompute":
            raise ValueError(
                f"objective.mismatch requires learner.pi_old 'recompute'; got {self.learner.pi_old!r}. With pi_old "
                "from the rollout, the likelihood ratio itself corrects the mismatch"
            )
        if self.learner.pi_old == "recompute" and self.training.total_updates_per_step > 1:
            raise ValueError(
                "learner.pi_old 'recompute' requires one update per step (training.updates_per_step 1 and "
                "training.passes 1), because it takes pi_old from the first forward pass of a step; got "
                f"{self.training.updates_per_step} and {self.training.passes}. Use 'rollout' with several updates"
            )
        if self.learner.pi_old == "recompute" and self.training.max_staleness and not self.objective.corrects_mismatch:
            raise ValueError(
                "learner.pi_old 'recompute' requires training.max_staleness 0, because older weights than the "
                f"learner's sampled the responses; got {self.training.max_staleness}. Use 'rollout', or correct the "
                "difference with objective.mismatch"
            )
        if self.training.max_refills and self.objective.ignores_rewards:
            raise ValueError(
                f"training.max_refills must be 0 with objective {self.objective.name!r}, which ignores rewards; got "
                f"{self.training.max_refills}"
            )
        if self.training.max_refills and self.objective.imitation_mask == "group":
            raise ValueError(
                "training.max_refills must be 0 with objective.imitate 'group': dynamic sampling drops the groups "
                f"without a correct response, the only ones with a distillation term; got {self.training.max_refills}. "
                "Set training.max_refills to 0, or objective.imitate to response or none"
            )
        buffer, budget = self.rewards.overlong_buffer_tokens, self.rollout.max_response_tokens
        if buffer is not None and buffer > budget:
            raise ValueError(
                f"rewards.overlong_buffer_tokens must not exceed rollout.max_response_tokens; got {buffer} and {budget}"
            )
        return self

    @model_validator(mode="after")
    def _float32_on_gpu_is_short(self) -> Self:
        longest = self.rollout.max_prompt_tokens + self.rollout.max_response_tokens
        if self.student.dtype == "float32" and self.learner.gpus_per_rank and longest > _FLOAT32_TOKENS:
            raise ValueError(
                f"student.dtype 'float32' on GPUs supports prompts and responses of at most {_FLOAT32_TOKENS} tokens "
                "together, because the attention kernel for long sequences takes bfloat16 only and the other one holds "
                f"a matrix of the length squared; got rollout.max_prompt_tokens + rollout.max_response_tokens {longest}"
                ". Set student.dtype to bfloat16 (the optimizer keeps float32 weights)"
            )
        return self

    @model_validator(mode="after")
    def _transport_fits_resources(self) -> Self:
        transport, learner, rollout = self.weights.transport, self.learner, self.rollout
        if transport == "object_store":
            return self
        gpus = (
            f"got learner.gpus_per_rank {learner.gpus_per_rank:g} and rollout.gpus_per_worker "
            f"{rollout.gpus_per_worker:g}"
        )
        if self.training.total_updates_per_step > 1:
            raise ValueError(
                f"weights.transport {transport!r} requires one update per step (training.updates_per_step 1 and "
                f"training.passes 1); got {self.training.updates_per_step} and {self.training.passes}. It sends the "
                "learner's current weights, which have no policy version between the updates of a step, and a worker "
                "may join at any time. Set training.updates_per_step and training.passes to 1, or use object_store"
            )
        if transport == "nccl" and (learner.gpus_per_rank < 1 or rollout.gpus_per_worker < rollout.tensor_parallel):
            raise ValueError(
                "weights.transport 'nccl' requires one GPU per learner rank and one per engine process "
                f"({rollout.tensor_parallel} with this rollout.tensor_parallel); {gpus}. Increase them, or use "
                "object_store"
            )
        if transport == "gloo" and (learner.gpus_per_rank or rollout.gpus_per_worker):
            raise ValueError(f"weights.transport 'gloo' requires a run without GPUs; {gpus}. Use nccl or object_store")
        if transport == "ipc":
            self._require_one_shared_gpu(gpus)
        return self

    def _require_one_shared_gpu(self, gpus: str) -> None:
        learner, rollout = self.learner, self.rollout
        if (learner.ranks, rollout.workers, rollout.max_workers, rollout.tensor_parallel) != (1, 1, 1, 1):
            raise ValueError(
                "weights.transport 'ipc' requires exactly one learner rank and one rollout worker, which share a GPU; "
                f"got learner.ranks {learner.ranks}, rollout.workers {rollout.workers}, rollout.max_workers "
                f"{or_null(rollout.max_workers)} and rollout.tensor_parallel {rollout.tensor_parallel}. Set all four "
                "to 1, or use nccl"
            )
        if not (
            learner.gpus_per_rank and rollout.gpus_per_worker and learner.gpus_per_rank + rollout.gpus_per_worker <= 1
        ):
            raise ValueError(
                "weights.transport 'ipc' requires learner and rollout worker to share one GPU, with fractions that add "
                f"up to at most 1; {gpus}. Use for example 0.4 and 0.5 on a cluster with one GPU"
            )
        if self.cluster.pool_labels:
            raise ValueError(
                "weights.transport 'ipc' requires cluster.pool_labels false, because the labels place learner and "
                "rollout worker on different nodes; got true"
            )
        if rollout.gpu_memory_fraction > rollout.gpus_per_worker:
            raise ValueError(
                "weights.transport 'ipc' requires rollout.gpu_memory_fraction of at most rollout.gpus_per_worker, so "
                f"that the learner has enough memory; got {rollout.gpu_memory_fraction:g} and "
                f"{rollout.gpus_per_worker:g}"
            )

    @property
    def overlong_penalty(self) -> OverlongPenalty | None:
        """Soft overlong punishment of the rewards; None if it is off."""
        if self.rewards.overlong_buffer_tokens is None:
            return None
        return OverlongPenalty(
            max_tokens=self.rollout.max_response_tokens,
            buffer_tokens=self.rewards.overlong_buffer_tokens,
            penalty=self.rewards.overlong_penalty,
        )

    @property
    def needs_teacher(self) -> bool:
        """Whether a teacher scores responses or generates traces."""
        return self.objective.uses_teacher or (self.offline is not None and self.offline.traces is None)

    @property
    def needs_reference(self) -> bool:
        """Whether the reference policy scores responses."""
        return self.objective.uses_reference

    @property
    def teachers_by_id(self) -> dict[str, TeacherConfig | SharedTeacherConfig]:
        """All teachers by id. A single teacher given as `teacher` has the id `teacher`."""
        return {"teacher": self.teacher} if self.teacher is not None else dict(self.teachers)

    @property
    def frozen_models(self) -> dict[str, TeacherConfig]:
        """Frozen models that the run deploys, by pool: scoring models, and the teacher that generates traces."""
        generator = self.teacher if self.offline is not None else None
        return ({"teacher": generator} if isinstance(generator, TeacherConfig) else {}) | self.scoring_pools

    @property
    def teacher_pools(self) -> dict[str, str]:
        """Pool names of the scoring teachers, by teacher id. Empty if the teacher only generates traces."""
        if not self.objective.uses_teacher:
            return {}
        return (
            {"teacher": "teacher"} if self.teacher is not None else {name: f"teacher-{name}" for name in self.teachers}
        )

    @property
    def scoring_pools(self) -> dict[str, TeacherConfig]:
        """Scoring models that the run deploys, by pool.

        Pools are `teacher`, or `teacher-ID` for each of several teachers, and `reference`.
        """
        teachers = {pool: self.teachers_by_id[name] for name, pool in self.teacher_pools.items()}
        pools = {pool: teacher for pool, teacher in teachers.items() if isinstance(teacher, TeacherConfig)}
        if self.reference is not None:
            path = self.student.path if self.reference.path is None else self.reference.path
            pools["reference"] = TeacherConfig.model_validate({**self.reference.model_dump(), "path": path})
        return pools

    @property
    def hidden_state_teacher(self) -> tuple[str, TeacherConfig] | None:
        """Pool and settings of the teacher that sends hidden states; None if there is none."""
        return next((each for each in self.scoring_pools.items() if each[1].send == "hidden_states"), None)

    @property
    def teacher_support(self) -> TeacherSupport:
        """Scores that the run requests from its teachers besides those of the sampled tokens."""
        return self.objective.teacher_support if self.hidden_state_teacher is None else "hidden_states"

    @property
    def shared_teachers(self) -> dict[str, SharedTeacherConfig]:
        """Scoring teachers that the run does not deploy, by pool name. They use none of the run's resources."""
        teachers = {pool: self.teachers_by_id[name] for name, pool in self.teacher_pools.items()}
        return {pool: teacher for pool, teacher in teachers.items() if not isinstance(teacher, TeacherConfig)}
