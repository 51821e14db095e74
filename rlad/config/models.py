"""The pydantic models of a run. Every field's description is the reference that `docs/configuration.md` prints."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from rlad.objectives import ObjectiveConfig
from rlad.verifiers import VerifierConfig

Fraction = Annotated[float, Field(ge=0, le=1)]
PositiveInt = Annotated[int, Field(ge=1)]
Seconds = Annotated[float, Field(gt=0)]


class ConfigModel(BaseModel):
    """Frozen, and strict about its keys: a misspelt setting must not train a model for a day."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class ModelConfig(ConfigModel):
    path: str = Field(description="Hugging Face model directory, or `starter:RECIPE/ROLE` for a model that `rlad pretrain` makes.")
    dtype: Literal["float32", "bfloat16"] = Field(
        "bfloat16", description="Precision of the weights in the engines (the learner keeps float32 masters)."
    )


class KnightsKnavesPrompts(ConfigModel):
    """Knights & Knaves puzzles, generated; each has exactly one solution."""

    source: Literal["knights_knaves"] = "knights_knaves"
    form: Literal["sentences", "compact"] = Field("sentences", description="Sentences for language models, or one character a token for tiny ones.")
    people: dict[Annotated[int, Field(ge=2, le=8)], Annotated[float, Field(gt=0)]] = Field(description="Share of puzzles by number of people.")
    count: PositiveInt = Field(description="Number of puzzles. There are only 399 of 2 people: training repeats them, evaluation refuses.")
    split: Literal["train", "evaluation"] = Field(description="Puzzles are split by a hash of themselves: the two can never overlap.")
    seed: int = 0


class PromptFile(ConfigModel):
    """A JSONL or parquet file of `id, prompt (messages or text), task, answer, metadata`."""

    source: Literal["file"] = "file"
    path: str = Field(description="A .jsonl or .parquet file.")
    form: Literal["sentences", "compact"] = Field("sentences", description="For parquet files of the K&K set, which are read as they are.")
    limit: PositiveInt | None = Field(None, description="Read only the first so many.")


class ReasoningGymPrompts(ConfigModel):
    """Problems of one reasoning-gym task, generated (the extra `reasoning-gym`). The prompts' `task` is the name of the dataset."""

    source: Literal["reasoning_gym"] = "reasoning_gym"
    dataset: str = Field(description="Name of the task in reasoning-gym, for example `chain_sum`.")
    size: PositiveInt = Field(description="Number of problems, all different.")
    split: Literal["train", "evaluation"] = Field(description="Problems are split by a hash of their question: the two can never overlap.")
    seed: int = 0
    settings: dict[str, Any] = Field(
        {}, description="The task's own settings, for example `{min_terms: 2, max_terms: 4}`; without `seed` and `size`."
    )

    @model_validator(mode="after")
    def _seed_and_size_are_ours(self) -> Self:
        if ours := sorted({"seed", "size"} & self.settings.keys()):
            raise ValueError(f"{' and '.join(ours)} in `settings`: set them beside `settings`, not in it")
        return self


PromptSource = Annotated[KnightsKnavesPrompts | PromptFile | ReasoningGymPrompts, Field(discriminator="source")]


class RolloutConfig(ConfigModel):
    """The pool of vLLM engines that sample from the student."""

    workers: PositiveInt = 1
    group_size: Annotated[int, Field(ge=2)] = Field(8, description="Responses sampled for each prompt.")
    max_prompt_tokens: PositiveInt = 1024
    max_response_tokens: PositiveInt = 2048
    temperature: Annotated[float, Field(gt=0)] = Field(1.0, description="Sampling temperature in training; the learner's logits are scaled alike.")
    top_p: float = Field(1.0, description="Must be 1 in training: truncated sampling rescales the likelihood ratio.")
    top_k: int = Field(0, description="Must be 0 (off) in training, for the same reason.")
    tensor_parallel: PositiveInt = Field(1, description="GPUs of one engine.")
    max_sequences: PositiveInt = Field(256, description="Sequences an engine decodes at once.")
    gpu_memory_fraction: Fraction = Field(0.9, description="Share of a GPU's memory the engine takes.")
    kv_cache_gib: Annotated[int, Field(ge=1)] = Field(1, description="KV cache of an engine on CPU, in GiB.")
    cpus_per_worker: Annotated[float, Field(gt=0)] = 1.0
    gpus_per_worker: Annotated[float, Field(ge=0)] = 0.0
    threads: PositiveInt = Field(1, description="Compute threads of an engine on CPU.")
    group_timeout_s: Seconds = Field(600, description="Deadline of one group; past it the group is issued again.")
    max_restarts: Annotated[int, Field(ge=0)] = Field(3, description="Workers the pool may replace before the run ends.")

    @model_validator(mode="after")
    def _sampling_must_not_truncate(self) -> Self:
        if self.top_p != 1.0 or self.top_k != 0:
            raise ValueError(
                "top_p below 1 or top_k above 0 in training rollouts rescales pi_old on the kept tokens, so the likelihood ratio is wrong; "
                "leave them off here (evaluation may use them)"
            )
        return self


class TeacherConfig(ConfigModel):
    """The Serve application that scores finished groups."""

    path: str = Field(description="Hugging Face model directory, or `starter:RECIPE/ROLE`.")
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    engine: Literal["vllm", "transformers"] = Field("vllm", description="Who runs the forward pass.")
    replicas: PositiveInt = 1
    tensor_parallel: PositiveInt = Field(1, description="GPUs of one replica (vllm engine).")
    max_ongoing_requests: PositiveInt = Field(64, description="Groups a replica holds at once; further ones wait in the caller.")
    token_budget: PositiveInt = Field(8192, description="Tokens of one forward pass (transformers engine).")
    cache_tokens: Annotated[int, Field(ge=0)] = Field(
        1_000_000, description="Token scores a replica remembers, by hash of teacher and tokens; 0 turns it off."
    )
    gpu_memory_fraction: Fraction = 0.9
    kv_cache_gib: Annotated[int, Field(ge=1)] = 1
    cpus_per_replica: Annotated[float, Field(gt=0)] = 1.0
    gpus_per_replica: Annotated[float, Field(ge=0)] = 0.0
    threads: PositiveInt = 1
    timeout_s: Seconds = Field(300, description="Deadline of scoring one group.")
    max_retries: Annotated[int, Field(ge=0)] = 3


class VerifierPoolConfig(ConfigModel):
    """Actors that run verifiers in processes which can be killed."""

    workers: PositiveInt = 1
    processes_per_worker: PositiveInt = 1
    cpus_per_worker: Annotated[float, Field(gt=0)] = 1.0
    timeout_s: Seconds = Field(10, description="Hard deadline of judging one response: past it the process is killed and the outcome is `timeout`.")


class OptimizerConfig(ConfigModel):
    lr: Annotated[float, Field(gt=0)] = 1e-6
    betas: tuple[float, float] = (0.9, 0.95)
    eps: Annotated[float, Field(gt=0)] = 1e-8
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    warmup_steps: Annotated[int, Field(ge=0)] = Field(0, description="Optimizer steps over which the learning rate rises from 0.")
    schedule: Literal["constant", "linear", "cosine"] = Field("constant", description="Decay after the warm-up, down to 0 at the last step.")
    max_gradient_norm: Annotated[float, Field(gt=0)] = 1.0


class LearnerConfig(ConfigModel):
    """The student's trainer: DeepSpeed ZeRO inside Ray Train."""

    ranks: PositiveInt = Field(1, description="Data-parallel workers.")
    zero_stage: Literal[0, 1, 2, 3] = 2
    optimizer: OptimizerConfig = OptimizerConfig()
    micro_batch_tokens: PositiveInt = Field(16384, description="Tokens (prompts included) a rank packs into one forward and backward pass.")
    logprob_chunk_tokens: PositiveInt = Field(1024, description="Tokens whose logits exist at once.")
    activation_checkpointing: bool = False
    offload_optimizer: bool = Field(False, description="Keep optimizer state in host memory.")
    pi_old: Literal["rollout", "recompute"] = Field(
        "rollout",
        description="Behaviour log-probabilities from the sampling engine (one forward fewer), or recomputed by the learner before the first update.",
    )
    truncated: Literal["keep", "mask"] = Field("keep", description="Whether responses that hit the token budget are trained on.")
    max_missing_teacher_fraction: Fraction = Field(0.01, description="Above this share of missing, NaN or infinite teacher scores, the step fails.")
    max_nonfinite_steps: PositiveInt = Field(3, description="Optimizer steps in a row with NaN or infinite gradients before the run ends.")
    cpus_per_rank: Annotated[float, Field(gt=0)] = 1.0
    gpus_per_rank: Annotated[float, Field(ge=0)] = 0.0
    threads: PositiveInt = 1
    max_restarts: Annotated[int, Field(ge=0)] = Field(3, description="Times Ray Train may restart the ranks from the last checkpoint.")
    step_timeout_s: Seconds = Field(3600, description="Deadline of one training step after its last group has arrived.")


class TrainingConfig(ConfigModel):
    steps: PositiveInt = Field(description="Training steps: batches of prompts sampled, scored and trained on.")
    prompts_per_step: PositiveInt = 32
    updates_per_step: PositiveInt = Field(
        1, description="Optimizer steps on one batch: its groups, in prompt order, cut into so many equal mini-batches."
    )
    max_staleness: Literal[0] = Field(0, description="Versions a sampled token may lag behind. 0: strictly on-policy.")

    @model_validator(mode="after")
    def _minibatches_divide(self) -> Self:
        if self.prompts_per_step % self.updates_per_step:
            raise ValueError(f"updates_per_step {self.updates_per_step} must divide prompts_per_step {self.prompts_per_step}")
        return self


class EvaluationConfig(ConfigModel):
    prompts: PromptSource
    every_steps: Annotated[int, Field(ge=0)] = Field(10, description="0 evaluates only before and after.")
    samples: PositiveInt = Field(1, description="Responses a prompt (k of mean@k and pass@k).")
    temperature: Annotated[float, Field(ge=0)] = 0.6
    top_p: Fraction = 0.95
    max_response_tokens: PositiveInt | None = Field(None, description="Default: that of the rollouts.")
    group_by: str = Field("task", description="Metadata key whose values become the table's rows, for example `people`.")


class CheckpointConfig(ConfigModel):
    every_steps: PositiveInt = 10
    keep: PositiveInt = 2


class ClusterConfig(ConfigModel):
    address: str | None = Field(None, description="Ray address, or `auto`; none starts a local one that ends with the run.")
    num_cpus: PositiveInt | None = Field(None, description="CPUs a local cluster claims; default: those of the machine.")
    start_timeout_s: Seconds = Field(300, description="Deadline for every pool to be up.")


class RunConfig(ConfigModel):
    """One distillation run."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=80)]
    seed: int = 0
    student: ModelConfig
    teacher: TeacherConfig | None = Field(None, description="Left out where the objective uses no teacher.")
    objective: ObjectiveConfig
    prompts: PromptSource
    verifiers: dict[str, VerifierConfig] = Field(description="By the prompts' `task`.")
    verifier_pool: VerifierPoolConfig = VerifierPoolConfig()
    rollout: RolloutConfig = RolloutConfig()
    learner: LearnerConfig = LearnerConfig()
    training: TrainingConfig
    evaluation: EvaluationConfig
    checkpoints: CheckpointConfig = CheckpointConfig()
    cluster: ClusterConfig = ClusterConfig()

    @model_validator(mode="after")
    def _teacher_iff_needed(self) -> Self:
        if self.needs_teacher and self.teacher is None:
            raise ValueError(f"objective {self.objective.name!r} needs a teacher: add a `teacher:` section with its path")
        if self.teacher is not None and not self.needs_teacher:
            raise ValueError(f"objective {self.objective.name!r} uses no teacher: remove the `teacher:` section, it would hold machines for nothing")
        if self.teacher is not None and self.teacher.engine == "vllm" and self.rollout.temperature != 1.0:
            raise ValueError("the vllm teacher engine scores at temperature 1 only: set rollout.temperature to 1, or teacher.engine to transformers")
        return self

    @property
    def needs_teacher(self) -> bool:
        return self.objective.uses_teacher
