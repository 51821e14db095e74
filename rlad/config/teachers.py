"""The pydantic models of teachers: one that a run deploys for itself, one that is there already and that several runs share, and the service that this is."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Discriminator, Field, Tag, model_validator

from rlad.config.base import ConfigModel, Fraction, PositiveInt, Seconds

# As Serve and URLs take it.
ServiceName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=80)]

TOKEN_VARIABLE = "RLAD_TEACHER_TOKEN"


class ScoringConfig(ConfigModel):
    """A Serve application in which a frozen model scores finished groups."""

    path: str | None
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    engine: Literal["vllm", "transformers"] = Field("vllm", description="Who runs the forward pass.")
    replicas: PositiveInt = 1
    tensor_parallel: PositiveInt = Field(1, description="GPUs of one replica (vllm engine).")
    max_ongoing_requests: PositiveInt = Field(
        64, description="Groups a replica holds at once; further ones wait in the caller."
    )
    token_budget: PositiveInt = Field(8192, description="Tokens of one forward pass (transformers engine).")
    cache_tokens: Annotated[int, Field(ge=0)] = Field(
        1_000_000,
        description="Token scores a replica remembers, by hash of teacher and tokens; one with a support of K tokens counts as 2 + 2 K. 0 turns it off.",
    )
    gpu_memory_fraction: Fraction = 0.9
    kv_cache_gib: Annotated[int, Field(ge=1)] = 1
    cpus_per_replica: Annotated[float, Field(gt=0)] = 1.0
    gpus_per_replica: Annotated[float, Field(ge=0)] = 0.0
    threads: PositiveInt = 1
    timeout_s: Seconds = Field(300, description="Deadline of scoring one group.")
    max_retries: Annotated[int, Field(ge=0)] = 3


class TeacherConfig(ScoringConfig):
    """The Serve application that scores finished groups. The run deploys it, and takes it down when it ends."""

    path: str = Field(description="Hugging Face model directory, or `starter:RECIPE/ROLE`.")

    @property
    def label(self) -> str:
        """What a person calls it by."""
        return self.path


class ReferenceConfig(ScoringConfig):
    """The frozen reference policy of objectives with a penalty for leaving it: one more application like a teacher's, asked for sampled tokens only."""

    path: str | None = Field(None, description="As a teacher's; default: the student as it starts.")


class _SharedTeacherConfig(ConfigModel):
    fingerprint: str | None = Field(
        None,
        description="Refuse another model than the one with this fingerprint (`rlad teacher status` prints it); default: take what is there.",
    )
    timeout_s: Seconds = Field(300, description="Deadline of scoring one group, waiting for one's turn included.")
    max_retries: Annotated[int, Field(ge=0)] = Field(
        3, description="Tries of one group after a replica, or the connection, was lost."
    )


class ServiceTeacherConfig(_SharedTeacherConfig):
    """A teacher that `rlad teacher deploy` has put on the run's own Ray cluster. Several runs share it; none deploys or deletes it."""

    service: ServiceName = Field(description="Its name there.")

    @property
    def label(self) -> str:
        return f"service {self.service}"


class RemoteTeacherConfig(_SharedTeacherConfig):
    """A teacher service outside of the run's cluster, over HTTP. Several runs share it."""

    url: str = Field(
        pattern=r"^https?://[^/?#@\s]+(/[^?#\s]*)?$",
        description="As `rlad teacher status` prints it, for example `https://host/kk-teacher`.",
    )
    token_env: str = Field(
        TOKEN_VARIABLE, description="Environment variable that holds the service's token, where `rlad run` is typed."
    )
    token_file: str | None = Field(None, description="File that holds the token, read before the variable is.")

    @property
    def label(self) -> str:
        return self.url


SharedTeacherConfig = ServiceTeacherConfig | RemoteTeacherConfig

# In parentheses, so that an error's place can leave out what is no key.
_KINDS = {"path": "(path)", "service": "(service)", "url": "(url)"}


def _kind_of(value: Any) -> str | None:
    given = [key for key in _KINDS if (key in value if isinstance(value, dict) else hasattr(value, key))]
    return _KINDS[given[0]] if len(given) == 1 else None


AnyTeacherConfig = Annotated[
    Annotated[TeacherConfig, Tag(_KINDS["path"])]
    | Annotated[ServiceTeacherConfig, Tag(_KINDS["service"])]
    | Annotated[RemoteTeacherConfig, Tag(_KINDS["url"])],
    Discriminator(
        _kind_of,
        custom_error_type="teacher_kind",
        custom_error_message="a teacher is a model that the run deploys (`path:`), a service on the run's Ray cluster (`service:`), or one elsewhere "
        "(`url:`): give exactly one of the three",
    ),
]
"""A teacher as a run names it."""


class TeacherHttpConfig(ConfigModel):
    """HTTP beside the handle. The address is Serve's own, one for all services of a Ray cluster, and taken when Serve starts there."""

    host: str = Field(
        "127.0.0.1", description="Loopback by default: who opens it to a network puts TLS in front of it."
    )
    port: Annotated[int, Field(ge=1, le=65535)] = 8000
    token_env: str = Field(TOKEN_VARIABLE, description="Environment variable of the Ray nodes that holds the token.")
    token_file: str | None = Field(
        None, description="File, on every node that may hold a gateway, with the token; read before the variable is."
    )
    gateways: PositiveInt = Field(1, description="Processes that answer HTTP and hand groups on to the replicas.")
    cpus_per_gateway: Annotated[float, Field(ge=0)] = 0.1
    max_request_mib: PositiveInt = Field(16, description="Larger requests are refused. A token costs 4 bytes.")


class TeacherServiceConfig(TeacherConfig):
    """A teacher as a service of its own: what a run's teacher has, bounds between which it scales, and what it grants each client."""

    pool: str | None = Field(
        None, description="Replicas run on the nodes labelled `rlad.io/pool` with this; without it on any."
    )
    max_replicas: PositiveInt | None = Field(
        None, description="Serve scales between `replicas` and so many by the groups under way; without it: not."
    )
    target_groups: PositiveInt | None = Field(
        None,
        description="Groups under way a replica, on average, above which Serve adds one; default: half of what one client may have.",
    )
    max_groups_per_client: PositiveInt | None = Field(
        None,
        description="Groups that one client (a run) may have under way in a replica: further ones are refused, and its client tries again until "
        "`timeout_s`. Default: half of `max_ongoing_requests`, so that no run alone can fill a replica.",
    )
    drain_s: Seconds = Field(20, description="How long a replica that goes may take over the groups it has.")
    health_timeout_s: Seconds = Field(
        60,
        description="A replica that says nothing for so long, three times in a row, is replaced; a dead one at once.",
    )
    http: TeacherHttpConfig | None = Field(
        None, description="`{}` opens the service to clients outside of its Ray cluster."
    )

    @model_validator(mode="after")
    def _bounds_are_in_order(self) -> Self:
        if self.max_replicas is not None and self.max_replicas < self.replicas:
            raise ValueError(
                f"max_replicas {self.max_replicas} is less than replicas {self.replicas}, the least that there are"
            )
        if self.target_groups is not None and self.max_replicas is None:
            raise ValueError("target_groups says when another replica is added: give max_replicas too")
        if self.client_quota > self.max_ongoing_requests:
            raise ValueError(
                f"max_groups_per_client {self.client_quota} is more than max_ongoing_requests {self.max_ongoing_requests}, what all have together"
            )
        return self

    @property
    def client_quota(self) -> int:
        """Groups that one client may have under way in a replica."""
        return (
            max(1, self.max_ongoing_requests // 2) if self.max_groups_per_client is None else self.max_groups_per_client
        )


class TeacherServiceFile(TeacherServiceConfig):
    """A teacher as a service that several runs share: one that a run has, with bounds between which it scales and what it grants each client."""

    name: ServiceName = Field(description="What runs call it by: `teacher: {service: NAME}`.")
