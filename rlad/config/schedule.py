"""The configuration of a recurring run: a run's settings, when it ticks, where its student comes from and what becomes of the result."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self, get_args

from pydantic import Field, field_validator, model_validator

from rlad.config.base import ConfigModel, Fraction, PositiveInt, Seconds

ScheduleName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=40)]
# What the registry takes for a model's and an alias's name.
RegistryName = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]*$", max_length=63)]
EnvironmentName = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]

TickEvent = Literal["promoted", "kept", "failed", "refused", "missed", "skipped"]
"""How a tick may end: a run whose student was promoted, or was not; a run that failed; no run, since another one went on, since it was too late, or for
want of new prompts."""


class PromptRefresh(ConfigModel):
    """Training prompts from files that come in over time. They take the place of the run's own `prompts`."""

    pattern: str = Field(
        description="Path with wildcards, `**` too; relative paths are seen from the schedule's working directory."
    )
    use: Literal["all", "new"] = Field(
        "all",
        description="Train on every file that matches, or only on those that no finished run has seen. A file that changes is new again. "
        "Without a file to train on the tick is skipped.",
    )


class NotifyConfig(ConfigModel):
    """Who is told how a tick ended, as JSON: a URL, a command, or both. Neither may fail the tick."""

    webhook_env: EnvironmentName | None = Field(
        None, description="Environment variable with the URL, which is secret more often than not."
    )
    token_env: EnvironmentName | None = Field(None, description="Environment variable with a bearer token for it.")
    command: list[str] = Field([], description="Command and arguments; the JSON is its standard input. No shell.")
    events: list[TickEvent] = Field(list(get_args(TickEvent)), description="Which endings are told.")
    timeout_s: Seconds = Field(10, description="Deadline of one attempt.")

    @model_validator(mode="after")
    def _token_goes_with_a_url(self) -> Self:
        if self.token_env is not None and self.webhook_env is None:
            raise ValueError("token_env is for a webhook, but webhook_env is not set")
        return self


class ScheduleConfig(ConfigModel):
    """What is stored of a schedule. The command has an option for nearly each; `rlad schedule show` prints all."""

    name: ScheduleName
    run: dict[str, Any] = Field(
        description="A run's settings, validated. Its evaluation prompts are frozen when the schedule is added."
    )
    cron: str = Field(
        description="Five cron fields: minute, hour, day of the month, month, day of the week (0 or 7 is Sunday)."
    )
    timezone: str = Field("Etc/UTC", description="IANA name; the fields are that place's wall clock.")
    working_dir: str = Field(description="What relative paths of the run's settings are seen from.")
    directory: str = Field(description="Where the schedule's runs, prompts, logs and students are.")
    registry: str = Field(description="Model registry: a directory, `s3://...` or `gs://...`.")
    model: RegistryName = Field(description="Name of the registry's model that the students become versions of.")
    start_from: RegistryName | None = Field(
        "production",
        description="Alias of the version that a run starts from; while there is none, the run's own `student`. None: always that.",
    )
    prompts: PromptRefresh | None = None
    vary_seed: bool = Field(
        True,
        description="Each run takes its prompts in another order: its seed is made of the run's and its scheduled time.",
    )
    margin: Fraction = Field(
        0.0, description="By how much (mean@k) a student has to be better than the one in production to be promoted."
    )
    keep_versions: PositiveInt = Field(
        5, description="Versions that stay in the registry, beside those that an alias leads to."
    )
    address: str | None = Field(
        None,
        description="Ray cluster of the runs, `auto` or HOST:6379, that the ticker's machine is a node of; none starts a local one for each.",
    )
    deadline_s: Seconds = Field(
        86_400, description="A run that has worked so long, over all attempts that its ticker lived to see, is ended."
    )
    retries: Annotated[int, Field(ge=0)] = Field(
        2, description="Times a run that failed or was killed is continued, before it is given up."
    )
    retry_wait_s: Annotated[float, Field(ge=0)] = Field(
        30, description="Pause before the first retry; doubled for each further one."
    )
    stop_grace_s: Seconds = Field(60, description="Between the request to end and the kill.")
    misfire_grace_s: Seconds = Field(
        3600, description="A tick that comes later than this is missed. Several that are due at once are one."
    )
    lease_s: Annotated[float, Field(ge=1)] = Field(
        60, description="A ticker that has not been heard of for so long has lost its schedule to the next."
    )
    notify: NotifyConfig = NotifyConfig()

    @field_validator("address")
    @classmethod
    def _address_can_be_joined(cls, address: str | None) -> str | None:
        if address is not None and "://" in address:
            raise ValueError(
                "a run joins its cluster from the ticker's machine: give `auto` or HOST:6379 of a cluster that this machine is a node of"
            )
        return address
