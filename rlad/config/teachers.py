"""Configuration of teachers, the reference policy, and shared teacher services.

A run either deploys a teacher itself (`path`), or uses one that other runs share: a service on its own Ray cluster
(`service`) or a service elsewhere (`url`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Discriminator, Field, Tag, model_validator

from rlad.config.base import ConfigModel, Fraction, PositiveInt, Seconds
from rlad.config.engine_arguments import EngineArguments, require_engine_arguments
from rlad.config.objective_options import ObjectiveSettings

# Valid both as a Ray Serve application name and in a URL.
ServiceName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=80)]

TOKEN_VARIABLE = "RLAD_TEACHER_TOKEN"

PROMPT_FIELD = re.compile(r"\{([A-Za-z_][\w.-]*)\}")
"""Field of a prompt template. Other braces are literal."""


def _prompt_template(template: str) -> str:
    """Refuse a template without the question, or with unknown fields."""
    fields = PROMPT_FIELD.findall(template)
    unknown = [name for name in fields if name not in ("question", "answer") and not name.startswith("metadata.")]
    if unknown:
        raise ValueError(
            f"unknown field {{{unknown[0]}}}; expected {{question}}, {{answer}} or {{metadata.KEY}}. Braces around "
            "anything but a name are literal"
        )
    if "question" not in fields:
        raise ValueError("must contain {question}, the text of the student's prompt")
    return template


PromptTemplate = Annotated[str, AfterValidator(_prompt_template)]
PROMPT_TEMPLATE = Field(
    None,
    description="Prompt behind which the teacher scores the student's tokens: a privileged teacher. `{question}` is "
    "the text of the student's prompt (of its last message, if it consists of messages), `{answer}` the expected "
    "answer, `{metadata.KEY}` a value of the prompt's metadata, such as a reference solution or a hint. Null means the "
    "student's own prompt.",
)


class ScoringConfig(ConfigModel):
    """Ray Serve application in which a frozen model scores sampled groups."""

    path: str | None
    dtype: Literal["float32", "bfloat16"] = Field("bfloat16", description="Precision of the weights.")
    engine: Literal["vllm", "transformers"] = Field("vllm", description="Inference engine of the forward pass.")
    replicas: PositiveInt = Field(1, description="Number of replicas.")
    tensor_parallel: PositiveInt = Field(1, description="GPUs per replica (vllm engine only).")
    max_ongoing_requests: PositiveInt = Field(
        64, description="Maximum number of groups in a replica at once. Further groups wait in the caller."
    )
    token_budget: PositiveInt = Field(
        8192, description="Maximum number of tokens in one forward pass (transformers engine only)."
    )
    cache_tokens: Annotated[int, Field(ge=0)] = Field(
        1_000_000,
        description="Capacity of a replica's score cache, in token scores; 0 turns the cache off. Keys are hashes of "
        "teacher and tokens. A token with the log-probabilities of its K likeliest tokens counts as 2 + 2 K.",
    )
    gpu_memory_fraction: Fraction = Field(0.9, description="Fraction of the GPU memory that a replica reserves.")
    kv_cache_gib: Annotated[int, Field(ge=1)] = Field(
        1, description="Size of the KV cache of a vLLM engine on CPU, in GiB. Ignored on GPUs."
    )
    cpus_per_replica: Annotated[float, Field(gt=0)] = Field(1.0, description="CPUs reserved per replica.")
    gpus_per_replica: Annotated[float, Field(ge=0)] = Field(
        0.0, description="GPUs reserved per replica; 0 runs the engine on CPU."
    )
    threads: PositiveInt = Field(1, description="Compute threads of a replica on CPU.")
    timeout_s: Seconds = Field(300, description="Deadline for scoring one group, in seconds.")
    max_retries: Annotated[int, Field(ge=0)] = Field(
        3, description="Maximum number of retries for a group whose replica was lost."
    )
    engine_args: EngineArguments = Field(
        {},
        description="Further arguments of vLLM's `AsyncEngineArgs` (vllm engine only), for example `{quantization: "
        "fp8}`. Arguments that other settings of rlad determine are refused.",
    )

    @model_validator(mode="after")
    def _engine_arguments_exist(self) -> Self:
        if self.engine_args and self.engine != "vllm":
            raise ValueError(f"engine_args require engine 'vllm'; got engine {self.engine!r}. Remove engine_args")
        require_engine_arguments(self.engine_args, scores=True)
        return self


class TeacherConfig(ScoringConfig):
    """A teacher that the run deploys as a Ray Serve application and deletes when it ends."""

    path: str = Field(description="Model reference, as `student.path`.")
    prompt_template: PromptTemplate | None = PROMPT_TEMPLATE
    send: Literal["logprobs", "hidden_states"] = Field(
        "logprobs",
        description="Form of the scores. `logprobs`: log-probabilities of the sampled tokens, and of further tokens "
        "where the objective needs them. `hidden_states`: the last hidden states in `dtype`, which the learner "
        "multiplies by the teacher's output layer; for `objective.estimator` `full`, at any vocabulary size, with both "
        "engines. See `docs/concepts/teachers.md`.",
    )

    @property
    def label(self) -> str:
        """Name shown in reports and model cards."""
        return self.path


class ReferenceConfig(ScoringConfig):
    """The frozen reference policy of objectives with `reference_kl` above 0.

    Deployed like a teacher, but only asked for the log-probabilities of sampled tokens.
    """

    path: str | None = Field(None, description="Model reference, as `student.path`; null means the initial student.")


class _SharedTeacherConfig(ConfigModel):
    fingerprint: str | None = Field(
        None,
        description="Expected fingerprint of the teacher's weights, as printed by `rlad teacher status`. The run fails "
        "if the service has another model; null accepts any.",
    )
    timeout_s: Seconds = Field(
        300, description="Deadline for scoring one group, in seconds, including the time in the service's queue."
    )
    max_retries: Annotated[int, Field(ge=0)] = Field(
        3, description="Maximum number of retries for a group after its replica or connection was lost."
    )
    prompt_template: PromptTemplate | None = PROMPT_TEMPLATE


class ServiceTeacherConfig(_SharedTeacherConfig):
    """A teacher service on the run's own Ray cluster, deployed with `rlad teacher deploy`.

    Runs share the service; no run deploys or deletes it.
    """

    service: ServiceName = Field(description="Name of the teacher service.")

    @property
    def label(self) -> str:
        """Name shown in reports and model cards."""
        return f"service {self.service}"


class RemoteTeacherConfig(_SharedTeacherConfig):
    """A teacher service outside the run's cluster, reached over HTTP and shared by runs."""

    url: str = Field(
        pattern=r"^https?://[^/?#@\s]+(/[^?#\s]*)?$",
        description="Address of the service, as printed by `rlad teacher status`, for example "
        "`https://host/kk-teacher`.",
    )
    token_env: str = Field(
        TOKEN_VARIABLE,
        description="Environment variable that holds the service's bearer token on the machine where `rlad run` "
        "starts.",
    )
    token_file: str | None = Field(
        None, description="File that holds the bearer token. Takes precedence over `token_env`; null means no file."
    )

    @property
    def label(self) -> str:
        """Name shown in reports and model cards."""
        return self.url


SharedTeacherConfig = ServiceTeacherConfig | RemoteTeacherConfig

# Tags are in parentheses, so that error locations can leave them out: they are not keys of the YAML file.
_KINDS = {"path": "(path)", "service": "(service)", "url": "(url)"}


def _kind_of(value: Any) -> str | None:
    present = [key for key in _KINDS if (key in value if isinstance(value, dict) else hasattr(value, key))]
    return _KINDS[present[0]] if len(present) == 1 else None


AnyTeacherConfig = Annotated[
    Annotated[TeacherConfig, Tag(_KINDS["path"])]
    | Annotated[ServiceTeacherConfig, Tag(_KINDS["service"])]
    | Annotated[RemoteTeacherConfig, Tag(_KINDS["url"])],
    Discriminator(
        _kind_of,
        custom_error_type="teacher_kind",
        custom_error_message="a teacher requires exactly one of `path` (a model that the run deploys), `service` (a "
        "service on the run's Ray cluster) and `url` (a service elsewhere)",
    ),
]
"""Teacher section of a run: exactly one of `path`, `service` and `url` selects its kind."""


class TeacherHttpConfig(ConfigModel):
    """HTTP access to a teacher service.

    The address belongs to Ray Serve: all services of a Ray cluster share it, and it is fixed when Serve starts.
    """

    host: str = Field(
        "127.0.0.1", description="Address to listen on. Put TLS in front of the service before exposing it."
    )
    port: Annotated[int, Field(ge=1, le=65535)] = Field(8000, description="Port to listen on.")
    token_env: str = Field(
        TOKEN_VARIABLE, description="Environment variable that holds the bearer token on the Ray nodes."
    )
    token_file: str | None = Field(
        None,
        description="File that holds the bearer token, present on every node that may run a gateway. Takes precedence "
        "over `token_env`; null means no file.",
    )
    gateways: PositiveInt = Field(1, description="Number of processes that accept HTTP requests.")
    cpus_per_gateway: Annotated[float, Field(ge=0)] = Field(0.1, description="CPUs reserved per gateway.")
    max_request_mib: PositiveInt = Field(
        16, description="Maximum size of a request, in MiB. A token takes 4 bytes. Larger requests are rejected."
    )


class TeacherServiceConfig(TeacherConfig):
    """A teacher service: a teacher with autoscaling bounds and a quota per client."""

    pool: str | None = Field(
        None, description="Run replicas only on nodes whose Ray label `rlad.io/pool` has this value; null means any."
    )
    max_replicas: PositiveInt | None = Field(
        None,
        description="Maximum number of replicas. Ray Serve scales between `replicas` and this by the number of groups "
        "in flight; null turns autoscaling off.",
    )
    target_groups: PositiveInt | None = Field(
        None,
        description="Average number of groups in flight per replica above which Serve adds a replica; null means half "
        "of the quota of one client.",
    )
    max_groups_per_client: PositiveInt | None = Field(
        None,
        description="Quota of one client (a run): maximum number of its groups in flight per replica. Further groups "
        "are rejected, and the client retries until `timeout_s`. Null means half of `max_ongoing_requests`, so that no "
        "single run can fill a replica.",
    )
    drain_s: Seconds = Field(
        20, description="Time that a stopping replica has to finish the groups in flight, in seconds."
    )
    health_timeout_s: Seconds = Field(
        60,
        description="Deadline for a health check, in seconds. A replica that fails three checks in a row is replaced; "
        "a crashed one is replaced immediately.",
    )
    http: TeacherHttpConfig | None = Field(
        None,
        description="HTTP access for clients outside the Ray cluster. `{}` turns it on with defaults; null turns it "
        "off.",
    )

    @model_validator(mode="after")
    def _sends_logprobs(self) -> Self:
        if self.send != "logprobs":
            raise ValueError(
                f"send must be 'logprobs' for a teacher service, because only a run that deploys its teacher knows the "
                f"files of the teacher's output layer; got {self.send!r}"
            )
        return self

    @model_validator(mode="after")
    def _has_no_prompt(self) -> Self:
        if self.prompt_template is not None:
            raise ValueError(
                "prompt_template belongs to a run, because a service scores tokens behind any prompt; set it in the "
                "`teacher` section of the run"
            )
        return self

    @model_validator(mode="after")
    def _bounds_are_consistent(self) -> Self:
        if self.max_replicas is not None and self.max_replicas < self.replicas:
            raise ValueError(
                f"max_replicas must be at least replicas; got max_replicas {self.max_replicas} and replicas "
                f"{self.replicas}"
            )
        if self.target_groups is not None and self.max_replicas is None:
            raise ValueError(f"target_groups requires max_replicas; got target_groups {self.target_groups} alone")
        if self.client_quota > self.max_ongoing_requests:
            raise ValueError(
                "max_groups_per_client must not exceed max_ongoing_requests; got max_groups_per_client "
                f"{self.client_quota} and max_ongoing_requests {self.max_ongoing_requests}"
            )
        return self

    @property
    def client_quota(self) -> int:
        """Maximum number of groups of one client in flight per replica."""
        if self.max_groups_per_client is None:
            return max(1, self.max_ongoing_requests // 2)
        return self.max_groups_per_client


class TeacherServiceFile(TeacherServiceConfig):
    """A teacher service that runs share: a teacher with autoscaling bounds and a quota per client."""

    name: ServiceName = Field(description="Name of the service. Runs refer to it as `teacher: {service: NAME}`.")


def check_sends(objective: ObjectiveSettings, teachers: Mapping[str, TeacherConfig | SharedTeacherConfig]) -> None:
    """Refuse hidden states that the objective does not need, or that belong to several output layers.

    Args:
        objective: Objective of the run.
        teachers: Teachers by id.

    Raises:
        ValueError: With the reason.
    """
    if not any(isinstance(each, TeacherConfig) and each.send == "hidden_states" for each in teachers.values()):
        return
    if objective.teacher_support != "full":
        raise ValueError(
            "teacher.send 'hidden_states' requires objective.estimator 'full', because other estimators need a few "
            f"log-probabilities a token; got objective {objective.name!r}. Set teacher.send to logprobs"
        )
    if len(teachers) > 1:
        raise ValueError(
            "teacher.send 'hidden_states' requires a single teacher, because the learner holds one output layer; got "
            f"{', '.join(teachers)}. Set send to logprobs, with engine transformers"
        )
