"""Kubernetes objects of a workload, as plain structures. Each fact is stated once; what KubeRay's operator would refuse is not expressible here."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any, Literal
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import yaml

from actors.pool.placement import HEAD_POOL, POOL_LABEL, label_of
from pipelines.kubernetes.sizing import PodGroup
from pipelines.kubernetes.workload import CONFIG_FILE, STORAGE, Workload, kubernetes_name
from rlad.config import RunConfig, TeacherConfig
from rlad.errors import PlanError

Manifest = dict[str, Any]

_CRON = re.compile(r"([0-9A-Za-z*,/?-]+ ){4}[0-9A-Za-z*,/?-]+")

_SCHEDULE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,39}")

QUEUE_LABEL = "kueue.x-k8s.io/queue-name"
# Of a Kueue workload; one is the head's, one that of the pod which submits a RayJob.
_MAX_POD_SETS = 8
_HEAD_CPUS, _HEAD_GIB = 4, 16
_USER = 1000
# Longer than a replica may go on with the groups it has, shorter than what Kubernetes administrators wait for.
_GRACE_S = 60
_SUBMITTER_CPUS, _SUBMITTER_GIB = "500m", 1
# How long a finished run's pods stay, for whoever wants to look at them.
_KEEP_FINISHED_S = 600


@dataclass(frozen=True, slots=True, kw_only=True)
class DeploymentOptions:
    """What the cluster's administrator decides. Secrets are named, never held.

    Attributes:
        image: with rlad in it, see deploy/docker.
        queue: LocalQueue of Kueue that admits the pods; without one they start when there is room.
        schedule: five cron fields, of the recurring kinds.
        timezone: IANA name for the schedule.
        is_suspended: created so that nothing starts before someone says so.
        storage_claim: PersistentVolumeClaim, mounted by many nodes at once.
        token_secret: with key `auth_token`; who does not have it can neither submit nor join.
        redis_address: of the Redis that outlives the head; `redis_secret` has its password under `password`.
        entrypoint: what jobs run, in place of the workload's own command.
        tick: schedule that the recurring kinds tick, in place of starting a run of their own.
        schedules_secret: with the URL of the schedules' database under `url`.
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

    def __post_init__(self) -> None:
        """
        Raises:
            PlanError: a schedule that KubeRay or Kubernetes would refuse, or that is none of `rlad schedule`'s names.
        """
        if self.tick is not None and not _SCHEDULE_NAME.fullmatch(self.tick):
            raise PlanError(f"no schedule is called {self.tick!r}: expected a name as `rlad schedule list` shows it")
        if not _CRON.fullmatch(self.schedule):
            raise PlanError(
                f"a schedule has five cron fields, as '0 2 * * *' for every night at two; got {self.schedule!r}"
            )
        try:
            ZoneInfo(self.timezone)
        except (ZoneInfoNotFoundError, ValueError) as error:
            raise PlanError(f"no time zone {self.timezone!r}: expected a name as Europe/Berlin") from error


@dataclass(frozen=True, slots=True, kw_only=True)
class Deployment:
    """A workload with its groups and options: everything that manifests are made of."""

    workload: Workload
    groups: tuple[PodGroup, ...]
    options: DeploymentOptions

    def __post_init__(self) -> None:
        if self.options.queue is None:
            return
        if len(self.groups) > _MAX_POD_SETS - 2:
            raise PlanError(
                f"Kueue takes at most {_MAX_POD_SETS - 2} pools, the run has {len(self.groups)}: {', '.join(g.pool for g in self.groups)}"
            )
        if scaled := [group.pool for group in self.groups if group.max_replicas > group.replicas]:
            raise PlanError(
                f"Kueue reserves what a run needs when it starts, so pool {scaled[0]} cannot grow beyond it: leave out --max-workers"
            )

    def entrypoint(self, run_dir: str) -> str:
        return self.options.entrypoint or self.workload.entrypoint(run_dir)


def config_map(deployment: Deployment) -> Manifest:
    """The run's configuration, which the head mounts."""
    text = yaml.safe_dump(dict(deployment.workload.settings), sort_keys=False)
    return _object("v1", "ConfigMap", deployment, {"data": {CONFIG_FILE.name: text}}, suffix="-config", queued=False)


def ray_cluster(deployment: Deployment) -> Manifest:
    """A cluster that stays: runs are submitted to it. Its head may die and come back, since what it knows is kept in Redis."""
    spec = _cluster_spec(deployment, deployment.groups) | {
        "gcsFaultToleranceOptions": _fault_tolerance(deployment.options)
    }
    return _object("ray.io/v1", "RayCluster", deployment, {"spec": spec})


def ray_job(deployment: Deployment) -> Manifest:
    """One run with a cluster of its own, which goes when the run has ended. A retry is a new cluster that continues the run."""
    run_dir = f"{STORAGE}/runs/{deployment.workload.name}"
    spec = _job_spec(deployment, deployment.entrypoint(run_dir), retries=2)
    return _object("ray.io/v1", "RayJob", deployment, {"spec": spec | _suspended(deployment.options)})


def ray_cron_job(deployment: Deployment) -> Manifest:
    """A new run at every tick of a schedule, in a directory of its own, unless the one before still runs.

    Raises:
        PlanError: with a queue.
    """
    if deployment.options.queue is not None:
        raise PlanError(
            "a RayCronJob does not hand Kueue's label on to its jobs, so they would pass the queue by: use --kind cronjob with --queue"
        )
    name = deployment.workload.name
    if deployment.options.tick is not None:
        job = _job_spec(deployment, _tick(deployment.options.tick), retries=2)  # which continue the run
    else:
        command = _alone(name, deployment.entrypoint(f"{STORAGE}/runs/{name}-$(date -u +%Y%m%d-%H%M)"))
        # The directory is named after the time of submission, so a retry would begin another run.
        job = _job_spec(deployment, command, retries=0)
    spec = {"schedule": deployment.options.schedule, "timeZone": deployment.options.timezone, "jobTemplate": job}
    return _object("ray.io/v1", "RayCronJob", deployment, {"spec": spec | _suspended(deployment.options)})


def cron_job(deployment: Deployment) -> Manifest:
    """The same for clusters without RayCronJob: a job of Kubernetes' own submits a run to the standing RayCluster and stays until it has ended."""
    options, name = deployment.options, deployment.workload.name
    # $(RUN) is Kubernetes', replaced before any shell sees it: the name of this tick's job, the same whoever starts its pod.
    command = (
        _tick(options.tick)
        if options.tick is not None
        else _alone(name, deployment.entrypoint(f"{STORAGE}/runs/$(RUN)"))
    )
    container = {
        "name": "submit",
        "image": options.image,
        "command": [
            "ray",
            "job",
            "submit",
            "--address",
            f"http://{name}-head-svc:8265",
            "--submission-id",
            "$(RUN)",
            "--",
            *command.split(),
        ],
        "env": [
            {
                "name": "RUN",
                "valueFrom": {"fieldRef": {"fieldPath": "metadata.labels['batch.kubernetes.io/job-name']"}},
            },
            {"name": "RAY_AUTH_MODE", "value": "token"},
            {
                "name": "RAY_AUTH_TOKEN",
                "valueFrom": {"secretKeyRef": {"name": options.token_secret, "key": "auth_token"}},
            },
        ],
        "resources": {
            "requests": {"cpu": _SUBMITTER_CPUS, "memory": f"{_SUBMITTER_GIB}Gi"},
            "limits": {"memory": f"{_SUBMITTER_GIB}Gi"},
        },
        "securityContext": _container_security(),
    }
    pod = {
        "restartPolicy": "Never",
        "automountServiceAccountToken": False,
        "securityContext": _pod_security(),
        "containers": [container],
    }
    spec = {
        "schedule": options.schedule,
        "timeZone": options.timezone,
        "concurrencyPolicy": "Forbid",
        # A tick missed by more than this is left out, not run late beside the next.
        "startingDeadlineSeconds": _KEEP_FINISHED_S,
        "successfulJobsHistoryLimit": 3,
        "failedJobsHistoryLimit": 3,
        "jobTemplate": {"spec": {"backoffLimit": 0, "template": {"spec": pod}}},
    }
    return _object("batch/v1", "CronJob", deployment, {"spec": spec | _suspended(options)}, queued=False)


def ray_service(deployment: Deployment) -> Manifest:
    """The teachers alone, as a service that stays, behind KubeRay's rolling upgrades.

    Raises:
        PlanError: no teacher scores in this run.
    """
    teachers = _teachers(deployment.workload)
    groups = [group for group in deployment.groups if group.pool in teachers]
    cluster = _cluster_spec(deployment, groups, with_config=False) | {
        "gcsFaultToleranceOptions": _fault_tolerance(deployment.options)
    }
    serve = yaml.safe_dump(serve_config(deployment), sort_keys=False)
    spec = {"serveConfigV2": serve, "rayClusterConfig": cluster} | _suspended(deployment.options)
    return _object("ray.io/v1", "RayService", deployment, {"spec": spec}, suffix="-teacher")


def serve_config(deployment: Deployment) -> Manifest:
    """What `serve deploy` takes: every teacher as an application of its own, named by its pool.

    Raises:
        PlanError: no teacher scores in this run.
    """
    groups = {group.pool: group for group in deployment.groups}
    applications = []
    for pool, teacher in _teachers(deployment.workload).items():
        group, settings = groups[pool], teacher.model_dump(mode="json", exclude_defaults=True)
        path = settings["path"] if settings["path"].startswith("starter:") else str(STORAGE / settings["path"])
        args = {**settings, "path": path, "pool": pool}
        if group.max_replicas > group.replicas:
            args["max_replicas"] = group.max_replicas * group.workers_per_pod
        # No route: what they do is reached by handle, from inside the cluster.
        applications.append(
            {"name": pool, "route_prefix": None, "import_path": "actors.teacher.application:build", "args": args}
        )
    return {"applications": applications}


def _teachers(workload: Workload) -> dict[str, TeacherConfig]:
    found: dict[str, TeacherConfig] = {}
    for run in workload.runs:
        if isinstance(run, RunConfig):
            found |= {pool: teacher for pool, teacher in run.scoring_pools.items() if pool != "reference"}
    if not found:
        raise PlanError(
            "no teacher scores in this configuration that the run deploys, so there is none to serve: leave out rayservice"
        )
    return found


def _job_spec(deployment: Deployment, entrypoint: str, *, retries: int) -> Manifest:
    """The head takes the driver along when it dies, so its memory is not kept in Redis: a retry with a new cluster continues from the last checkpoint."""
    return {
        "entrypoint": entrypoint,
        "shutdownAfterJobFinishes": True,
        "ttlSecondsAfterFinished": _KEEP_FINISHED_S,
        "backoffLimit": retries,
        "rayClusterSpec": _cluster_spec(deployment, deployment.groups),
    }


def _cluster_spec(deployment: Deployment, groups: Sequence[PodGroup], *, with_config: bool = True) -> Manifest:
    options = deployment.options
    return {
        "rayVersion": version("ray"),
        "authOptions": {"mode": "token", "secretName": options.token_secret},
        **_autoscaling(options),
        "headGroupSpec": _head(deployment, with_config=with_config),
        "workerGroupSpecs": [_worker_group(group, options) for group in groups],
    }


def _autoscaling(options: DeploymentOptions) -> Manifest:
    """Kueue admits a cluster of a fixed size: with a queue nothing scales."""
    if options.queue is not None:
        return {"enableInTreeAutoscaling": False}
    return {"enableInTreeAutoscaling": True, "autoscalerOptions": {"version": "v2", "idleTimeoutSeconds": 300}}


def _head(deployment: Deployment, *, with_config: bool) -> Manifest:
    options = deployment.options
    container = _container("ray-head", options, cpus=_HEAD_CPUS, memory_gib=_HEAD_GIB, gpus=0)
    container["ports"] = [
        {"containerPort": port, "name": name}
        for name, port in (("gcs-server", 6379), ("dashboard", 8265), ("client", 10001))
    ]
    volumes = _volumes(options)
    if options.tick is not None and with_config:
        container["env"].append(
            {"name": "RLAD_SCHEDULES", "valueFrom": {"secretKeyRef": {"name": options.schedules_secret, "key": "url"}}}
        )
    if with_config:
        container["volumeMounts"].append({"name": "config", "mountPath": str(CONFIG_FILE.parent), "readOnly": True})
        volumes.append({"name": "config", "configMap": {"name": f"{deployment.workload.name}-config"}})
    pod = {"restartPolicy": "Never", "securityContext": _pod_security(), "containers": [container], "volumes": volumes}
    # Of Ray's own CPUs it has none, so nothing but the driver and the broker comes here.
    return {
        "labels": {POOL_LABEL: HEAD_POOL},
        "resources": {"CPU": "0"},
        "rayStartParams": {},
        "template": {"spec": pod},
    }


def _worker_group(group: PodGroup, options: DeploymentOptions) -> Manifest:
    container = _container("ray-worker", options, cpus=group.cpus, memory_gib=group.memory_gib, gpus=group.gpus)
    # Tells Ray that the node goes, so that its workers are replaced at once and not after missed heartbeats.
    container["lifecycle"] = {"preStop": {"exec": {"command": ["/bin/sh", "-c", "ray stop"]}}}
    pod: Manifest = {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": _GRACE_S,
        "automountServiceAccountToken": False,
        "securityContext": _pod_security(),
        "containers": [container],
        "volumes": _volumes(options),
    }
    if group.gpus:
        pod["tolerations"] = [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}]
    return {
        "groupName": kubernetes_name(group.pool),  # part of the pods' names
        "labels": {POOL_LABEL: label_of(group.pool)},
        "replicas": group.replicas,
        "minReplicas": group.replicas,
        "maxReplicas": group.max_replicas,
        "rayStartParams": {},
        "template": {"spec": pod},
    }


def _container(name: str, options: DeploymentOptions, *, cpus: int, memory_gib: int, gpus: int) -> Manifest:
    limits = {"cpu": str(cpus), "memory": f"{memory_gib}Gi"} | ({"nvidia.com/gpu": str(gpus)} if gpus else {})
    return {
        "name": name,
        "image": options.image,
        # Equal to the limits, so that no pod is evicted for what another takes. Ray's own numbers are read from them.
        "resources": {"requests": dict(limits), "limits": limits},
        "env": [
            {"name": "RLAD_CACHE", "value": f"{STORAGE}/cache"},
            {"name": "HF_HOME", "value": f"{STORAGE}/cache/huggingface"},
            {"name": "HF_HUB_OFFLINE", "value": "1"},
            {"name": "VLLM_NO_USAGE_STATS", "value": "1"},
            {"name": "RAY_USAGE_STATS_ENABLED", "value": "0"},
        ],
        "volumeMounts": [{"name": "storage", "mountPath": str(STORAGE)}],
        "securityContext": _container_security(),
    }


def _volumes(options: DeploymentOptions) -> list[Manifest]:
    return [{"name": "storage", "persistentVolumeClaim": {"claimName": options.storage_claim}}]


def _pod_security() -> Manifest:
    return {
        "runAsNonRoot": True,
        "runAsUser": _USER,
        "runAsGroup": _USER,
        "fsGroup": _USER,
        # Shared storage is large: its files' group is looked at, not rewritten at every start.
        "fsGroupChangePolicy": "OnRootMismatch",
        "seccompProfile": {"type": "RuntimeDefault"},
    }


def _container_security() -> Manifest:
    return {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}


def _fault_tolerance(options: DeploymentOptions) -> Manifest:
    password = {"valueFrom": {"secretKeyRef": {"name": options.redis_secret, "key": "password"}}}
    return {"redisAddress": options.redis_address, "redisPassword": password}


def _alone(name: str, command: str) -> str:
    """Refused at once while another run of this schedule goes on, whoever started it: neither Ray nor a RayCronJob looks."""
    return f"flock --nonblock {STORAGE}/{name}.lock {command}"


def _tick(schedule: str) -> str:
    """Does what the schedule has to do; its lease keeps runs apart, and an unfinished run is continued."""
    return f"rlad schedule tick {schedule}"


def _suspended(options: DeploymentOptions) -> Manifest:
    return {"suspend": True} if options.is_suspended else {}


def _object(
    api: str,
    kind: Literal["ConfigMap", "CronJob", "RayCluster", "RayCronJob", "RayJob", "RayService"],
    deployment: Deployment,
    content: Manifest,
    *,
    suffix: str = "",
    queued: bool = True,
) -> Manifest:
    options = deployment.options
    metadata: Manifest = {"name": f"{deployment.workload.name}{suffix}"}
    if options.namespace is not None:
        metadata["namespace"] = options.namespace
    labels = {"app.kubernetes.io/name": "rlad", "app.kubernetes.io/instance": deployment.workload.name}
    metadata["labels"] = labels | ({QUEUE_LABEL: options.queue} if queued and options.queue is not None else {})
    return {"apiVersion": api, "kind": kind, "metadata": metadata, **content}
