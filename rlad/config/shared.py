"""Configuration sections shared by runs and evaluation suites: the model, the Ray cluster and failure handling."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from rlad.config.base import ConfigModel, PositiveInt, Seconds


class ModelConfig(ConfigModel):
    """The student model."""

    path: str = Field(
        description="Model reference: a directory, a hub id `OWNER/NAME[@REVISION]`, `s3://...` or `gs://...`, "
        "`registry:MODEL@ALIAS`, or `starter:RECIPE/ROLE`. See how-to/models.md."
    )
    dtype: Literal["float32", "bfloat16"] = Field(
        "bfloat16", description="Precision of the weights in the engines. The learner keeps float32 master weights."
    )
    chat_template_kwargs: dict[str, Any] = Field(
        {},
        description="Arguments of the student's chat template, for example `{enable_thinking: false}`, wherever "
        "messages are rendered: training, evaluation, traces. An argument that the template does not use is refused.",
    )

    @field_validator("chat_template_kwargs")
    @classmethod
    def _truth_values_are_not_text(cls, arguments: dict[str, Any]) -> dict[str, Any]:
        for name, value in arguments.items():
            if isinstance(value, str) and value.strip().lower() in ("true", "false", "yes", "no", "none", "null"):
                raise ValueError(
                    f"chat_template_kwargs.{name} is the text {value!r}, which a template takes for true; write "
                    "true, false or null without quotes"
                )
        return arguments


class ClusterConfig(ConfigModel):
    """The Ray cluster that the run connects to or starts."""

    address: str | None = Field(
        None,
        description="Address of a Ray cluster, or `auto`; null starts a local cluster that stops with the run.",
    )
    num_cpus: PositiveInt | None = Field(
        None, description="CPUs of a local cluster; null means all CPUs of the machine."
    )
    start_timeout_s: Seconds = Field(300, description="Deadline for all pools to start, in seconds.")
    pool_labels: bool = Field(
        False,
        description="Place each pool only on nodes whose Ray label `rlad.io/pool` equals the pool's name, and the "
        "broker on nodes labelled `head`. `rlad plan` prints the pool names; `rlad deploy render` labels the nodes "
        "and turns this setting on.",
    )


class FailureConfig(ConfigModel):
    """Failure handling: heartbeats, deadlines and budgets."""

    heartbeat_s: Seconds = Field(
        10,
        description="Time between two looks at each process of the run, in seconds. A process that is stopped (not "
        "merely busy) at `missed_heartbeats` looks in a row is killed and replaced.",
    )
    missed_heartbeats: PositiveInt = Field(
        3, description="Number of looks in a row at which a process must be stopped to be killed and replaced."
    )
    slow_worker_fraction: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.2,
        description="A rollout worker is killed and replaced, within `rollout.max_restarts`, if its generation speed "
        "falls below this fraction of the median of its pool, of at least three workers. Two speeds must be below: "
        "tokens per second, and tokens per second and sequence. 0 replaces none, for example for GPUs of very "
        "different speed.",
    )
    slow_worker_window_s: Seconds = Field(
        60,
        description="Seconds of generation over which a worker's speed is measured, and before which a worker is not "
        "replaced. Time without responses to generate and weight updates do not count.",
    )
    max_group_attempts: PositiveInt = Field(
        4, description="How often a group is issued before it is abandoned. Each attempt may use other workers."
    )
    max_abandoned_groups: Annotated[int, Field(ge=0)] = Field(
        8,
        description="Maximum number of groups that the run abandons and replaces by others. The next one ends the run "
        "with the error of its last attempt.",
    )
    step_timeout_s: Seconds = Field(
        3600,
        description="Deadline for one training step after its last group has arrived, and for the export of the "
        "student, in seconds.",
    )
