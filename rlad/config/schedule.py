"""Configuration of a schedule: a run's settings, its cron expression, the initial student, and promotion."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self, get_args

from pydantic import AwareDatetime, Field, field_validator, model_validator

from rlad.config.base import ConfigModel, Fraction, PositiveInt, Seconds
from rlad.config.evaluation import EvaluationConfig, LatencyConfig
from rlad.config.prompts import PromptSource
from rlad.verifiers import VerifierConfig

ScheduleName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=40)]
# Pattern of model names and aliases in the registry.
RegistryName = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]*$", max_length=63)]
QueueName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._:/-]*$", max_length=200)]
GateName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=40)]
EnvironmentName = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]

TickEvent = Literal["promoted", "requested", "kept", "stopped", "failed", "refused", "missed", "skipped"]
"""Outcome of a tick.

- `promoted`, `kept`: the run finished, and its student was or was not promoted.
- `requested`: the run finished, and the promotion of its student waits for the approval of a person.
- `stopped`: the run was stopped by `rlad stop`.
- `failed`: the run failed.
- `refused`: no run, because another run of the schedule is still active.
- `missed`: no run, because the tick came too late.
- `skipped`: no run, because no file has new prompts, or nothing has changed since the last run (`run_if`).
"""


class PromptRefresh(ConfigModel):
    """Training prompts from files that arrive over time. They replace the run's `prompts`."""

    pattern: str = Field(
        description="Glob pattern of the files; `**` is supported. Relative to the schedule's `working_dir`."
    )
    use: Literal["all", "new"] = Field(
        "all",
        description="`all` trains on every matching file, `new` only on files that no finished run has used. A "
        "modified file counts as new. A tick without files is skipped.",
    )


class ProcessLauncherConfig(ConfigModel):
    """Runs are processes of the scheduler's machine, and end with the scheduler."""

    kind: Literal["process"] = "process"


class RayJobLauncherConfig(ConfigModel):
    """Runs are jobs of a standing Ray cluster, through its job API, as with `rlad submit`.

    A run continues without its scheduler, and another scheduler adopts it. The schedule's `directory` and prompt files
    must be on storage that the schedulers and all nodes mount.
    """

    kind: Literal["ray_job"] = Field("ray_job", description="`process`, the default, has no other settings.")
    address: str = Field(pattern=r"^https?://[^\s/@]+/?$", description="Dashboard of the cluster, `http://HOST:8265`.")
    token_env: EnvironmentName | None = Field(
        None, description="Environment variable of the scheduler with the cluster's token."
    )
    token_file: str | None = Field(
        None,
        description="File on the scheduler's machine with the cluster's token. Without `token_env` and `token_file`, "
        "Ray's own variables apply (RAY_AUTH_MODE, RAY_AUTH_TOKEN_PATH).",
    )
    upload: bool = Field(
        True,
        description="Upload `working_dir` with each job. With false, jobs use the packages that are installed on the "
        "nodes, and all paths in the run's settings must be absolute.",
    )
    python: str | None = Field(None, description="Python interpreter on the nodes; null for `python` on their PATH.")
    packages: list[str] = Field([], description="Packages that Ray installs with pip for each job.")
    variables: dict[EnvironmentName, str] = Field(
        {}, description="Environment variables of the jobs. Secrets are refused."
    )
    away_s: Seconds = Field(
        300,
        description="Time that the cluster may fail to answer, in seconds. After it the attempt has failed, and the "
        "next one submits the run again.",
    )

    @model_validator(mode="after")
    def _one_token(self) -> Self:
        if self.token_env is not None and self.token_file is not None:
            raise ValueError("expected launcher.token_env or launcher.token_file; got both")
        return self


LauncherConfig = Annotated[ProcessLauncherConfig | RayJobLauncherConfig, Field(discriminator="kind")]


class NotifyConfig(ConfigModel):
    """Notification of tick outcomes as JSON, to a webhook, a command, or both.

    A failed notification does not fail the tick.
    """

    webhook_env: EnvironmentName | None = Field(
        None, description="Environment variable that holds the webhook's URL; null means no webhook."
    )
    token_env: EnvironmentName | None = Field(
        None, description="Environment variable that holds a bearer token for the webhook; null sends no token."
    )
    command: list[str] = Field(
        [],
        description="Command and arguments, run without a shell. The JSON is written to its standard input. Empty "
        "means no command.",
    )
    events: list[TickEvent] = Field(list(get_args(TickEvent)), description="Outcomes to send notifications for.")
    timeout_s: Seconds = Field(10, description="Deadline for one notification, in seconds.")

    @model_validator(mode="after")
    def _token_requires_webhook(self) -> Self:
        if self.token_env is not None and self.webhook_env is None:
            raise ValueError(f"notify.token_env requires notify.webhook_env; got token_env {self.token_env} alone")
        return self


_GATE_RULES = ("max_loss", "min_accuracy", "max_latency_s", "max_latency_growth")


class GateConfig(EvaluationConfig):
    """Prompt set that a better student must also pass to be promoted. `every_steps` and `overlap` are ignored.

    At least one rule is required. With several, all must hold.
    """

    max_loss: Fraction | None = Field(
        None,
        description="Maximum loss against the version in production, in mean@k accuracy: the 95% confidence interval "
        "of the difference, paired by prompt, must not reach below minus this. Null does not compare.",
    )
    min_accuracy: Fraction | None = Field(None, description="Minimum mean@k accuracy; null for no minimum.")
    max_latency_s: Seconds | None = Field(
        None,
        description="Maximum 95th percentile of the time of a whole response, in seconds, measured as `latency` says; "
        "null for no maximum.",
    )
    max_latency_growth: Annotated[float, Field(ge=0)] | None = Field(
        None,
        description="Maximum growth of that percentile against the version in production, as a share of it: 0.2 "
        "allows 20% more. Null does not compare.",
    )

    @model_validator(mode="after")
    def _has_a_rule(self) -> Self:
        if all(getattr(self, rule) is None for rule in _GATE_RULES):
            raise ValueError(f"a gate requires at least one of {', '.join(_GATE_RULES)}")
        return self

    @property
    def compares(self) -> bool:
        """Whether a rule compares with the version in production."""
        return self.max_loss is not None or self.max_latency_growth is not None

    @property
    def limits_latency(self) -> bool:
        """Whether a rule requires the latency."""
        return self.max_latency_s is not None or self.max_latency_growth is not None

    def evaluation(self, prompts: PromptSource) -> EvaluationConfig:
        """Return the settings of the evaluation, on the given prompts."""
        settings = self.model_dump(exclude={"prompts", "latency", *_GATE_RULES})
        latency = self.latency or (LatencyConfig() if self.limits_latency else None)
        return EvaluationConfig(prompts=prompts, latency=latency, **settings)


class ScheduleConfig(ConfigModel):
    """A stored schedule. `rlad schedule add` has an option for most settings; `rlad schedule show` prints all."""

    name: ScheduleName = Field(description="Name of the schedule.")
    run: dict[str, Any] = Field(
        description="Settings of the run, validated. The evaluation prompts are frozen when the schedule is added."
    )
    cron: str = Field(
        description="Cron expression with five fields: minute, hour, day of month, month, day of week (0 or 7 is "
        "Sunday)."
    )
    timezone: str = Field("Etc/UTC", description="IANA time zone of the cron expression.")
    working_dir: str = Field(description="Directory that relative paths in the run's settings refer to.")
    directory: str = Field(description="Directory for the schedule's runs, prompts, logs and students.")
    registry: str = Field(description="Model registry: a directory, `s3://...` or `gs://...`.")
    model: RegistryName = Field(description="Name of the registered model whose versions the students become.")
    start_from: RegistryName | None = Field(
        "production",
        description="Alias of the model version that a run starts from. While the alias does not exist, and with null, "
        "runs start from the run's `student`.",
    )
    prompts: PromptRefresh | None = Field(
        None, description="Training prompts from files that arrive over time; null uses the run's `prompts`."
    )
    vary_seed: bool = Field(
        True,
        description="Derive each run's seed from the configured seed and the scheduled time, so that the order of "
        "prompts differs between runs.",
    )
    margin: Fraction = Field(
        0.0,
        description="Improvement over the production version, in mean@k accuracy, that a student must exceed to "
        "be promoted. It must also be significant.",
    )
    gates: dict[GateName, GateConfig] = Field(
        {},
        description="Prompt sets by name that a student must pass in addition. They are evaluated for students that "
        "are better by the margin, and one failed gate refuses the promotion.",
    )
    gate_verifiers: dict[str, VerifierConfig] = Field(
        {}, description="Verifiers of tasks that only gates have, in addition to `run.verifiers`, by task."
    )
    require_approval: bool = Field(
        False,
        description="Request promotions instead of making them: a person approves with `rlad registry approve`. "
        "A model can require this for all its promotions (`rlad registry require-approval`).",
    )
    keep_versions: PositiveInt = Field(
        5, description="Number of most recent model versions to keep, in addition to versions with an alias."
    )
    address: str | None = Field(
        None,
        description="Address of the runs' Ray cluster, `auto` or HOST:6379. The scheduler's machine must be a node of "
        "it; null starts a local cluster for each run.",
    )
    launcher: LauncherConfig = Field(
        ProcessLauncherConfig(), description="Where runs are executed: `process` on this machine, or `ray_job`."
    )
    priority: Annotated[int, Field(ge=-1000, le=1000)] = Field(
        0, description="Priority among the schedules of a queue; larger values run first."
    )
    queue: QueueName | None = Field(
        None,
        description="Queue that limits the runs at once (`rlad schedule limit`); null for the queue of the runs' "
        "cluster, which has its address, or `local`.",
    )
    run_if: Literal["always", "changed"] = Field(
        "always",
        description="`changed` skips a tick if prompts, teachers and settings equal those of the last finished run. "
        "`rlad schedule run-now` always runs.",
    )
    start_at: AwareDatetime | None = Field(None, description="Earliest time of a tick; null for no limit.")
    end_at: AwareDatetime | None = Field(None, description="Latest time of a tick; null for no limit.")
    catch_up: Literal["skip", "once", "all"] = Field(
        "once",
        description="Times that passed without a ticker, within `misfire_grace_s`: `once` runs the latest one, `all` "
        "runs each of them in order, `skip` runs none that is over a minute late.",
    )
    deadline_s: Seconds = Field(
        86_400, description="Maximum working time of a run, in seconds, summed over its attempts."
    )
    retries: Annotated[int, Field(ge=0)] = Field(
        2, description="Maximum number of times a failed or killed run is resumed."
    )
    retry_wait_s: Annotated[float, Field(ge=0)] = Field(
        30, description="Pause before the first retry, in seconds. Doubles with each further retry."
    )
    stop_grace_s: Seconds = Field(60, description="Time between the request to stop a run and SIGKILL, in seconds.")
    misfire_grace_s: Seconds = Field(
        3600,
        description="Maximum delay of a tick, in seconds; later ticks are missed. Several due ticks count as one.",
    )
    lease_s: Annotated[float, Field(ge=1)] = Field(
        60, description="Lease of a scheduler on its schedule, in seconds. An expired lease can be taken over."
    )
    notify: NotifyConfig = Field(NotifyConfig(), description="Notification of tick outcomes; off by default.")

    @property
    def queue_name(self) -> str:
        """Name of the queue that the runs wait in."""
        if self.queue is not None:
            return self.queue
        cluster = self.launcher.address if isinstance(self.launcher, RayJobLauncherConfig) else self.address
        return (cluster or "local").rstrip("/")

    @field_validator("address")
    @classmethod
    def _address_is_not_a_client_url(cls, address: str | None) -> str | None:
        if address is not None and "://" in address:
            raise ValueError(
                "expected `auto` or HOST:6379 of a Ray cluster that this machine is a node of, because runs join the "
                f"cluster from here; got {address}"
            )
        return address

    @model_validator(mode="after")
    def _gate_verifiers_are_additional(self) -> Self:
        known = self.run.get("verifiers")
        if isinstance(known, dict) and (both := sorted(known.keys() & self.gate_verifiers.keys())):
            raise ValueError(f"gate_verifiers must not have the tasks of run.verifiers; got {', '.join(both)} in both")
        return self

    @model_validator(mode="after")
    def _dates_are_in_order(self) -> Self:
        if self.start_at is not None and self.end_at is not None and self.start_at > self.end_at:
            raise ValueError(f"expected start_at before end_at; got {self.start_at} and {self.end_at}")
        return self

    @model_validator(mode="after")
    def _jobs_have_their_own_address(self) -> Self:
        if self.address is not None and isinstance(self.launcher, RayJobLauncherConfig):
            raise ValueError(
                f"launcher.kind ray_job requires address null, because a job joins its own cluster; got {self.address}"
            )
        return self
