"""Kubernetes objects of a workload, as dictionaries. Combinations that KubeRay refuses raise a `PlanError`."""

from __future__ import annotations

from typing import Literal

import yaml

from pipelines.kubernetes.options import Deployment, DeploymentOptions
from pipelines.kubernetes.pods import (
    COMPONENT_LABEL,
    INSTANCE_LABEL,
    RAY_NODE,
    SUBMITS_LABEL,
    TEACHER_CLIENT_LABEL,
    Manifest,
    cluster_spec,
    container_security,
    fault_tolerance,
    pod_labels,
    pod_security,
    scratch_mounts,
    scratch_volumes,
)
from pipelines.kubernetes.workload import CONFIG_FILE, STORAGE, Workload, model_in_storage
from rlad.config import RunConfig, TeacherConfig
from rlad.errors import PlanError

QUEUE_LABEL = "kueue.x-k8s.io/queue-name"
_SUBMITTER_CPUS, _SUBMITTER_GIB = "500m", 1
_DASHBOARD_PORT, _SERVE_PORT = 8265, 8000
_METRICS_PORT = 8080  # KubeRay sets it
# Label that the Prometheus operator and its charts give to their pods.
_PROMETHEUS = {"app.kubernetes.io/name": "prometheus"}
_OPERATOR = {"app.kubernetes.io/name": "kuberay-operator"}
# Seconds for which the pods of a finished run are kept for inspection.
_KEEP_FINISHED_S = 600


def config_map(deployment: Deployment) -> Manifest:
    """Build the ConfigMap with the run's configuration, which the head mounts."""
    text = yaml.safe_dump(dict(deployment.workload.settings), sort_keys=False)
    return _object("v1", "ConfigMap", deployment, {"data": {CONFIG_FILE.name: text}}, suffix="-config", queued=False)


def network_policy(deployment: Deployment) -> Manifest:
    """Build the policy that closes the ports of the Ray pods: GCS (6379), dashboard (8265), Ray client (10001) and all
    others.

    Open are all ports between the pods of the workload; the dashboard, which accepts jobs, for pods with the label
    `rlad.io/submits-to` and for KubeRay's operator; Serve's port for pods with the label `rlad.io/teacher-client`; and
    Ray's metrics (8080) for pods of Prometheus.
    """
    name = deployment.workload.name
    nodes = {"matchLabels": {INSTANCE_LABEL: name, COMPONENT_LABEL: RAY_NODE}}
    ports = (_DASHBOARD_PORT, _SERVE_PORT, _METRICS_PORT)
    dashboard, serve, metrics = ([{"protocol": "TCP", "port": port}] for port in ports)
    operator = {"namespaceSelector": {}, "podSelector": {"matchLabels": _OPERATOR}}
    ingress = [
        {"from": [{"podSelector": nodes}]},
        {"from": [{"podSelector": {"matchLabels": {SUBMITS_LABEL: name}}}, operator], "ports": dashboard},
        {"from": [{"podSelector": {"matchLabels": {TEACHER_CLIENT_LABEL: name}}}], "ports": serve},
        {
            "from": [{"namespaceSelector": {}, "podSelector": {"matchLabels": _PROMETHEUS}}],
            "ports": metrics,
        },
    ]
    spec = {"podSelector": nodes, "policyTypes": ["Ingress"], "ingress": ingress}
    return _object("networking.k8s.io/v1", "NetworkPolicy", deployment, {"spec": spec}, queued=False)


def ray_cluster(deployment: Deployment) -> Manifest:
    """Build a persistent cluster that runs are submitted to. Its head can restart, since Redis keeps its state."""
    spec = cluster_spec(deployment, deployment.groups) | {
        "gcsFaultToleranceOptions": fault_tolerance(deployment.options)
    }
    return _object("ray.io/v1", "RayCluster", deployment, {"spec": spec})


def ray_job(deployment: Deployment) -> Manifest:
    """Build one run with its own cluster, which is deleted after the run. A retry continues it on a new cluster."""
    run_dir = f"{STORAGE}/runs/{deployment.workload.name}"
    spec = _job_spec(deployment, deployment.entrypoint(run_dir), retries=2)
    return _object("ray.io/v1", "RayJob", deployment, {"spec": spec | _suspended(deployment.options)})


def ray_cron_job(deployment: Deployment) -> Manifest:
    """Build periodic runs, each with its own directory and cluster. A run that overlaps the previous one ends.

    Raises:
        PlanError: A queue is set.
    """
    if deployment.options.queue is not None:
        raise PlanError(
            "--queue does not support raycronjob, since a RayCronJob does not pass Kueue's label to its jobs: "
            "use --kind cronjob"
        )
    name = deployment.workload.name
    if deployment.options.tick is not None:
        job = _job_spec(deployment, _tick(deployment.options.tick), retries=2)  # a retry continues the run
    else:
        command = _exclusive(name, deployment.entrypoint(f"{STORAGE}/runs/{name}-$(date -u +%Y%m%d-%H%M)"))
        # The directory name contains the submission time, so a retry would start a new run.
        job = _job_spec(deployment, command, retries=0)
    spec = {"schedule": deployment.options.schedule, "timeZone": deployment.options.timezone, "jobTemplate": job}
    return _object("ray.io/v1", "RayCronJob", deployment, {"spec": spec | _suspended(deployment.options)})


def cron_job(deployment: Deployment) -> Manifest:
    """Build periodic runs for Kubernetes without RayCronJob.

    A Kubernetes job submits each run to the persistent RayCluster and waits for its end.
    """
    options, name = deployment.options, deployment.workload.name
    # Kubernetes replaces $(RUN) before a shell sees it. It is the name of the tick's job, equal for all of its pods.
    command = (
        _tick(options.tick)
        if options.tick is not None
        else _exclusive(name, deployment.entrypoint(f"{STORAGE}/runs/$(RUN)"))
    )
    spec = {
        "schedule": options.schedule,
        "timeZone": options.timezone,
        "concurrencyPolicy": "Forbid",
        # A tick that is later than this is skipped, so that it does not overlap the next one.
        "startingDeadlineSeconds": _KEEP_FINISHED_S,
        "successfulJobsHistoryLimit": 3,
        "failedJobsHistoryLimit": 3,
        "jobTemplate": {
            "spec": {"backoffLimit": 0, "template": _submitter_pod(deployment, _submitter(deployment, command))}
        },
    }
    return _object("batch/v1", "CronJob", deployment, {"spec": spec | _suspended(options)}, queued=False)


def _submitter_pod(deployment: Deployment, container: Manifest) -> Manifest:
    """Build the template of a pod that submits a job and waits for its end."""
    labels = pod_labels(deployment, "submitter") | {SUBMITS_LABEL: deployment.workload.name}
    pod = {
        "restartPolicy": "Never",
        "automountServiceAccountToken": False,
        "securityContext": pod_security(),
        "containers": [container],
        "volumes": scratch_volumes(),
    }
    return {"metadata": {"labels": labels}, "spec": pod}


def _submitter_container(name: str, deployment: Deployment) -> Manifest:
    """Build a container that may submit jobs, without its command."""
    options = deployment.options
    secret = {"secretKeyRef": {"name": options.token_secret, "key": "auth_token"}}
    return {
        "name": name,
        "image": options.image,
        "env": [
            {"name": "RAY_AUTH_MODE", "value": "token"},
            {"name": "RAY_AUTH_TOKEN", "valueFrom": secret},
        ],
        "resources": {
            "requests": {"cpu": _SUBMITTER_CPUS, "memory": f"{_SUBMITTER_GIB}Gi"},
            "limits": {"memory": f"{_SUBMITTER_GIB}Gi"},
        },
        "volumeMounts": scratch_mounts(),
        "securityContext": container_security(),
    }


def _submitter(deployment: Deployment, command: str) -> Manifest:
    """Build the container that submits a command to the persistent RayCluster and waits for its end."""
    container = _submitter_container("submit", deployment)
    run = {"fieldRef": {"fieldPath": "metadata.labels['batch.kubernetes.io/job-name']"}}
    return container | {
        "command": [
            "ray",
            "job",
            "submit",
            "--address",
            f"http://{deployment.workload.name}-head-svc:8265",
            "--submission-id",
            "$(RUN)",
            "--",
            *command.split(),
        ],
        "env": [{"name": "RUN", "valueFrom": run}, *container["env"]],
    }


def ray_service(deployment: Deployment) -> Manifest:
    """Build a persistent service of the teachers only, with KubeRay's rolling upgrades.

    Raises:
        PlanError: No teacher scores in this run.
    """
    teachers = _teachers(deployment.workload)
    groups = [group for group in deployment.groups if group.pool in teachers]
    cluster = cluster_spec(deployment, groups, with_config=False) | {
        "gcsFaultToleranceOptions": fault_tolerance(deployment.options)
    }
    serve = yaml.safe_dump(serve_config(deployment), sort_keys=False)
    spec = {"serveConfigV2": serve, "rayClusterConfig": cluster} | _suspended(deployment.options)
    return _object("ray.io/v1", "RayService", deployment, {"spec": spec}, suffix="-teacher")


def serve_config(deployment: Deployment) -> Manifest:
    """Build the input of `serve deploy`: one application per teacher, named after its pool.

    Raises:
        PlanError: No teacher scores in this run.
    """
    groups = {group.pool: group for group in deployment.groups}
    applications = []
    for pool, teacher in _teachers(deployment.workload).items():
        group, settings = groups[pool], teacher.model_dump(mode="json", exclude_defaults=True)
        args = {**settings, "path": model_in_storage(settings["path"]), "pool": pool}
        if group.max_replicas > group.replicas:
            args["max_replicas"] = group.max_replicas * group.workers_per_pod
        # No HTTP route: teachers are called by handle from inside the cluster.
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
            "this configuration has no teacher that scores and that the run deploys, so there is no service to render"
        )
    return found


def _job_spec(deployment: Deployment, entrypoint: str, *, retries: int) -> Manifest:
    """Build the spec of a job with its own cluster.

    The head's state is not kept in Redis: the driver runs on the head and dies with it, and a retry with a new cluster
    continues from the last checkpoint.
    """
    return {
        "entrypoint": entrypoint,
        "shutdownAfterJobFinishes": True,
        "ttlSecondsAfterFinished": _KEEP_FINISHED_S,
        "backoffLimit": retries,
        # KubeRay adds the command. Its own template has no security context.
        "submitterPodTemplate": _submitter_pod(deployment, _submitter_container("ray-job-submitter", deployment)),
        "rayClusterSpec": cluster_spec(deployment, deployment.groups),
    }


def _exclusive(name: str, command: str) -> str:
    """Wrap a command in a lock, so that it fails at once while another run of this schedule is active.

    Neither Ray nor a RayCronJob prevents overlapping runs.
    """
    return f"flock --nonblock {STORAGE}/{name}.lock {command}"


def _tick(schedule: str) -> str:
    """Return the command that ticks a schedule. Its lease prevents overlaps, and it continues unfinished runs."""
    return f"rlad schedule tick {schedule}"


def _suspended(options: DeploymentOptions) -> Manifest:
    return {"suspend": True} if options.is_suspended else {}


def _object(
    api: str,
    kind: Literal["ConfigMap", "CronJob", "NetworkPolicy", "RayCluster", "RayCronJob", "RayJob", "RayService"],
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
