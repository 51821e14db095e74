"""Options of a deployment, and the deployment that manifests are built from."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pipelines.kubernetes.sizing import PodGroup
from pipelines.kubernetes.workload import Workload
from rlad.credentials import is_secret_name, require_no_secrets
from rlad.errors import PlanError

_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_CRON = re.compile(r"([0-9A-Za-z*,/?-]+ ){4}[0-9A-Za-z*,/?-]+")

_SCHEDULE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,39}")
_RESOURCE = re.compile(r"[a-z0-9.-]+/[A-Za-z0-9._-]+")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
# What fast networks need: memory that stays in place, and raised limits of it.
_CAPABILITIES = ("IPC_LOCK", "SYS_RESOURCE")
# Kueue's limit of pod sets per workload. One is the head's and one belongs to the pod that submits a RayJob.
_MAX_POD_SETS = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class DeploymentOptions:
    """Settings of the cluster's administrator. Secrets are referenced by name.

    Attributes:
        image: Container image with rlad, see deploy/docker: NAME@sha256:DIGEST or NAME:TAG.
        namespace: Namespace of all objects; None for kubectl's current one.
        queue: Kueue LocalQueue that admits the pods; None to start pods as soon as there is room.
        schedule: Five cron fields of the recurring kinds.
        timezone: IANA time zone of the schedule.
        is_suspended: True to create the objects suspended.
        storage_claim: PersistentVolumeClaim with access mode ReadWriteMany.
        token_secret: Secret with Ray's token under the key `auth_token`, needed to submit jobs and to join the cluster.
        redis_address: Address of a Redis outside of the Ray cluster, which keeps the head's state.
        redis_secret: Secret with the Redis password under the key `password`.
        entrypoint: Command of the jobs; None for the workload's own command.
        tick: Schedule that the recurring kinds tick; None to start a new run each time.
        schedules_secret: Secret with the URL of the schedule database under the key `url`.
        pod_resources: Further resources of the pods with GPUs, for example `{"rdma/hca": "1"}`.
        environment: Further environment variables of all worker pods, for example NCCL's. Not for secrets.
        capabilities: Linux capabilities that the pods with GPUs keep, for example IPC_LOCK for RDMA.
        compile_cache: Directory in the pods with GPUs for compiled kernels; None for the pod's own, which is lost with
            it. The engines execute what they find there.
    """

    image: str
    namespace: str | None = None
    queue: str | None = None
    schedule: str = "0 2 * * *"
    timezone: str = "Etc/UTC"
    is_suspended: bool = False
    storage_claim: str = "rlad-storage"
    token_secret: str = "rlad-ray-token"
    redis_address: str = "redis:6379"
    redis_secret: str = "rlad-redis"
    entrypoint: str | None = None
    tick: str | None = None
    schedules_secret: str = "rlad-schedules"
    pod_resources: Mapping[str, str] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)
    capabilities: tuple[str, ...] = ()
    compile_cache: str | None = None

    def __post_init__(self) -> None:
        """Validate the schedule, and refuse secrets: manifests are stored and shown.

        Raises:
            ConfigError: An option holds a secret.
            PlanError: Kubernetes would refuse the cron fields, the time zone or an option, an option is not allowed,
                `tick` is not a valid name, or the image has neither a tag nor a valid digest.
        """
        self._require_version()
        self._require_pod_options()
        options = {each.name: getattr(self, each.name) for each in fields(self)}
        # Under names of its own: the option `token_secret` names a Kubernetes secret.
        require_no_secrets({f"{name}_name": value for name, value in options.items()}, where="options of the manifests")
        if self.tick is not None and not _SCHEDULE_NAME.fullmatch(self.tick):
            raise PlanError(f"--tick requires the name of a schedule of `rlad schedule list`; got {self.tick!r}")
        if not _CRON.fullmatch(self.schedule):
            raise PlanError(
                f"--schedule requires five cron fields, for example '0 2 * * *' for 02:00 every day; "
                f"got {self.schedule!r}"
            )
        try:
            ZoneInfo(self.timezone)
        except (ZoneInfoNotFoundError, ValueError) as error:
            raise PlanError(
                f"unknown time zone {self.timezone!r}: expected an IANA name such as Europe/Berlin"
            ) from error

    def _require_pod_options(self) -> None:
        for name in self.pod_resources:
            if not _RESOURCE.fullmatch(name):
                raise PlanError(f"--pod-resource requires the name of an extended resource (rdma/hca); got {name!r}")
        for name in self.environment:
            if not _VARIABLE.fullmatch(name):
                raise PlanError(f"--env requires a variable name of letters, digits and _; got {name!r}")
            if is_secret_name(name):
                raise PlanError(f"--env {name} looks like a secret, which manifests must not hold: use a Secret")
        for capability in self.capabilities:
            if capability not in _CAPABILITIES:
                raise PlanError(f"--capability supports {', '.join(_CAPABILITIES)}; got {capability!r}")
        if self.compile_cache is not None and not self.compile_cache.startswith("/"):
            raise PlanError(f"--compile-cache requires an absolute path in the pods; got {self.compile_cache!r}")

    @property
    def is_image_pinned(self) -> bool:
        """Whether the image is named by its digest. A tag can be moved to another image at any time."""
        return "@" in self.image

    def _require_version(self) -> None:
        name, _, digest = self.image.partition("@")
        tag = name.rpartition("/")[2].partition(":")[2]
        if self.is_image_pinned and not _DIGEST.fullmatch(digest):
            raise PlanError(f"--image requires NAME@sha256:DIGEST with 64 hexadecimal digits; got {self.image!r}")
        if not self.is_image_pinned and tag in ("", "latest"):
            raise PlanError(
                f"--image requires a version, so that all pods run the same code: NAME@sha256:DIGEST or NAME:TAG; got "
                f"{self.image!r}"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Deployment:
    """Input of all manifests.

    Attributes:
        workload: Run, comparison or evaluation to deploy.
        groups: Pod groups, one per pool.
        options: Settings of the cluster's administrator.
    """

    workload: Workload
    groups: tuple[PodGroup, ...]
    options: DeploymentOptions

    def __post_init__(self) -> None:
        """Validate the groups against Kueue's limits.

        Raises:
            PlanError: A queue is set, and Kueue cannot admit the groups.
        """
        if self.options.queue is None:
            return
        if len(self.groups) > _MAX_POD_SETS - 2:
            raise PlanError(
                f"--queue requires at most {_MAX_POD_SETS - 2} pools, since Kueue admits no more; "
                f"the run has {len(self.groups)}: {', '.join(group.pool for group in self.groups)}"
            )
        if scaled := [group.pool for group in self.groups if group.max_replicas > group.replicas]:
            raise PlanError(
                f"--queue requires pools of fixed size, since Kueue reserves resources at the start: "
                f"remove --max-workers of pool {scaled[0]}"
            )

    def entrypoint(self, run_dir: str) -> str:
        """Return the command of a job that runs in `run_dir`."""
        return self.options.entrypoint or self.workload.entrypoint(run_dir)
