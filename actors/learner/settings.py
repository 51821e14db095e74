"""Settings of a learner rank, and the names of what it writes into the run directory."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self

from ray.actor import ActorHandle

from actors.pool.placement import selector_of
from rlad.config import LearnerConfig, RunConfig
from rlad.config.objectives import ObjectiveConfig

CHECKPOINTS = "checkpoints"
EXPORT = "export"


@dataclass(frozen=True, slots=True, kw_only=True)
class TeacherOutput:
    """Output layer of a teacher that sends hidden states.

    Attributes:
        model: Location of the teacher's model.
        dtype: Data type of the teacher, `float32` or `bfloat16`.
    """

    model: str
    dtype: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LearnerSettings:
    """Settings of every learner rank.

    Attributes:
        learner: The `learner` section.
            objective=config.objective.resolved(max_staleness=config.training.max_staleness),
            student=student,
        student_reference: The student as the configuration names it, for the export's metadata.
        dtype: Data type of the student's weights in the engines.
        temperature: Sampling temperature, by which the learner scales its logits.
        steps: Training steps of the run.
        updates_per_step: Optimizer updates of a step, over all passes.
        passes: Passes over the batch of a step.
        seed: Seed of the run.
        step_timeout_s: Deadline of a step, and so of a collective, seconds.
        checkpoint_every_steps: Steps between two checkpoints.
        checkpoints_to_keep: Number of checkpoints that are kept.
        transport: How weight updates travel.
        full_every: Policy versions from one full publication to the next, as in `weights.full_every`.
        engine_processes: Processes of one rollout engine, each of which receives the weights of a transfer.
        transfer_timeout_s: Deadline of a weight transfer, seconds.
        label_selector: Labels of the nodes that ranks may run on; empty for any node.
        run_dir: Absolute path of the run directory; all ranks must see it.
        broker: Handle of the `ExperienceBroker`.
        vocabulary_size: Number of token ids. Later entries of the student's output layer have probability 0; None means
            that all entries are tokens.
        run_id: Run to whose monitor the ranks announce themselves; None for no monitor.
        teacher_output: Model and data type of the output layer by which hidden states of the teacher are multiplied;
            None if the teacher sends log-probabilities.
    """

    learner: LearnerConfig
    objective: ObjectiveConfig
    student: str
    student_reference: str
    dtype: str
    temperature: float
    steps: int
    updates_per_step: int
    passes: int
    seed: int
    step_timeout_s: float
    checkpoint_every_steps: int
    checkpoints_to_keep: int
    transport: Literal["object_store", "nccl", "ipc", "gloo"]
    full_every: int
    engine_processes: int
    transfer_timeout_s: float
    label_selector: dict[str, str]
    run_dir: Path
    broker: ActorHandle
    vocabulary_size: int | None = None
    run_id: str | None = None
    teacher_output: TeacherOutput | None = None

    @classmethod
    def of(
        cls,
        config: RunConfig,
        *,
        student: str,
        run_dir: Path,
        broker: ActorHandle,
        vocabulary_size: int | None = None,
        run_id: str | None = None,
        teacher_output: TeacherOutput | None = None,
    ) -> Self:
        """Collect the settings from a run's configuration."""
        return cls(
            learner=config.learner,
            objective=config.objective.resolved(max_staleness=config.training.max_staleness),
            student=student,
            student_reference=config.student.path,
            dtype=config.student.dtype,
            temperature=config.rollout.temperature,
            steps=config.training.steps,
            updates_per_step=config.training.total_updates_per_step,
            passes=config.training.passes,
            seed=config.seed,
            step_timeout_s=config.failures.step_timeout_s,
            checkpoint_every_steps=config.checkpoints.every_steps,
            checkpoints_to_keep=config.checkpoints.keep,
            transport=config.weights.transport,
            full_every=config.weights.full_every,
            engine_processes=config.rollout.tensor_parallel,
            transfer_timeout_s=config.cluster.start_timeout_s,
            label_selector=selector_of(config.cluster, "learner"),
            run_dir=run_dir.resolve(),
            broker=broker,
            vocabulary_size=vocabulary_size,
            run_id=run_id,
            teacher_output=teacher_output,
        )
