"""Pods and Ray clusters of a deployment: head, worker groups, containers, volumes and security settings."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

from actors.pool.placement import HEAD_POOL, POOL_LABEL, label_of
from pipelines.kubernetes.options import Deployment, DeploymentOptions
from pipelines.kubernetes.sizing import PodGroup
from pipelines.kubernetes.workload import CONFIG_FILE, STORAGE, kubernetes_name

Manifest = dict[str, Any]

_HEAD_CPUS, _HEAD_GIB = 4, 16
_USER = 1000
# Folders of compiled kernels, by the variable that names each.
_COMPILE_CACHES = {"VLLM_CACHE_ROOT": "vllm", "TRITON_CACHE_DIR": "triton", "TORCHINDUCTOR_CACHE_DIR": "inductor"}
_HOME = "/home/rlad"
# Labels of pods, which network policies select by.
INSTANCE_LABEL, COMPONENT_LABEL = "app.kubernetes.io/instance", "app.kubernetes.io/component"
SUBMITS_LABEL, TEACHER_CLIENT_LABEL = "rlad.io/submits-to", "rlad.io/teacher-client"
RAY_NODE = "ray-node"
# Longer than a replica needs to drain its groups, shorter than administrators expect a pod to take.
_GRACE_S = 60


def cluster_spec(deployment: Deployment, groups: Sequence[PodGroup], *, with_config: bool = True) -> Manifest:
    """Build the spec of a Ray cluster.

    Args:
        deployment: Workload and options.
        groups: Pod groups that become worker groups.
        with_config: True to mount the run's configuration in the head.
    """
    options = deployment.options
    return {
        "rayVersion": version("ray"),
        "authOptions": {"mode": "token", "secretName": options.token_secret},
        **_autoscaling(options),
        "headGroupSpec": _head(deployment, with_config=with_config),
        "workerGroupSpecs": [_worker_group(group, deployment) for group in groups],
    }


def _autoscaling(options: DeploymentOptions) -> Manifest:
    """Enable the autoscaler, except with a queue: Kueue admits clusters of a fixed size."""
    if options.queue is not None:
        return {"enableInTreeAutoscaling": False}
    sidecar = {"securityContext": container_security(), "volumeMounts": scratch_mounts()}
    return {
        "enableInTreeAutoscaling": True,
        "autoscalerOptions": {"version": "v2", "idleTimeoutSeconds": 300, **sidecar},
    }


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
    pod = {"restartPolicy": "Never", "securityContext": pod_security(), "containers": [container], "volumes": volumes}
    # No CPUs for Ray: only the driver and the broker run on the head.
    return {
        "labels": {POOL_LABEL: HEAD_POOL},
        "resources": {"CPU": "0"},
        "rayStartParams": {},
        "template": {"metadata": {"labels": pod_labels(deployment, RAY_NODE)}, "spec": pod},
    }


def _worker_group(group: PodGroup, deployment: Deployment) -> Manifest:
    options = deployment.options
    container = _container("ray-worker", options, cpus=group.cpus, memory_gib=group.memory_gib, gpus=group.gpus)
    _add_site_settings(container, options, on_gpu=group.gpus > 0)
    # Announces the node's end to Ray, so that its workers are replaced at once and not after missed heartbeats.
    container["lifecycle"] = {"preStop": {"exec": {"command": ["/bin/sh", "-c", "ray stop"]}}}
    pod: Manifest = {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": _GRACE_S,
        "automountServiceAccountToken": False,
        "securityContext": pod_security(),
        "containers": [container],
        "volumes": _volumes(options),
    }
    if group.gpus:
        pod["tolerations"] = [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}]
    return {
        "groupName": kubernetes_name(group.pool),  # becomes part of pod names
        "labels": {POOL_LABEL: label_of(group.pool)},
        "replicas": group.replicas,
        "minReplicas": group.replicas,
        "maxReplicas": group.max_replicas,
        "rayStartParams": {},
        "template": {"metadata": {"labels": pod_labels(deployment, RAY_NODE)}, "spec": pod},
    }


def _container(name: str, options: DeploymentOptions, *, cpus: int, memory_gib: int, gpus: int) -> Manifest:
    limits = {"cpu": str(cpus), "memory": f"{memory_gib}Gi"} | ({"nvidia.com/gpu": str(gpus)} if gpus else {})
    return {
        "name": name,
        "image": options.image,
        # Requests equal limits, so that a pod is not evicted for memory that others use. Ray reads its resources here.
        "resources": {"requests": dict(limits), "limits": limits},
        "env": [
            {"name": "RLAD_CACHE", "value": f"{STORAGE}/cache"},
            {"name": "HF_HOME", "value": f"{STORAGE}/cache/huggingface"},
            {"name": "HF_HUB_OFFLINE", "value": "1"},
            {"name": "VLLM_NO_USAGE_STATS", "value": "1"},
            {"name": "RAY_USAGE_STATS_ENABLED", "value": "0"},
        ],
        "volumeMounts": [{"name": "storage", "mountPath": str(STORAGE)}, *scratch_mounts()],
        "securityContext": container_security(),
    }


def _add_site_settings(container: Manifest, options: DeploymentOptions, *, on_gpu: bool) -> None:
    """Add the environment, and on GPUs the resources, capabilities and compile caches that the site has set."""
    added = dict(options.environment)
    if on_gpu:
        for amounts in container["resources"].values():
            amounts |= options.pod_resources
        if options.capabilities:
            container["securityContext"]["capabilities"]["add"] = list(options.capabilities)
        if options.compile_cache is not None:
            added |= {name: f"{options.compile_cache}/{folder}" for name, folder in _COMPILE_CACHES.items()}
    container["env"] += [{"name": name, "value": value} for name, value in added.items()]


def _volumes(options: DeploymentOptions) -> list[Manifest]:
    return [{"name": "storage", "persistentVolumeClaim": {"claimName": options.storage_claim}}, *scratch_volumes()]


def scratch_mounts() -> list[Manifest]:
    """Build the mounts of what a container writes: Ray's sessions and spilled objects, and caches in the home."""
    return [{"name": "tmp", "mountPath": "/tmp"}, {"name": "home", "mountPath": _HOME}]


def scratch_volumes() -> list[Manifest]:
    """Build the volumes of `scratch_mounts`. They end with the pod."""
    return [{"name": "tmp", "emptyDir": {}}, {"name": "home", "emptyDir": {}}]


def pod_labels(deployment: Deployment, component: str) -> Manifest:
    """Build the labels of a pod, which the network policy selects by."""
    return {
        "app.kubernetes.io/name": "rlad",
        INSTANCE_LABEL: deployment.workload.name,
        COMPONENT_LABEL: component,
    }


def pod_security() -> Manifest:
    """Build the security context of a pod."""
    return {
        "runAsNonRoot": True,
        "runAsUser": _USER,
        "runAsGroup": _USER,
        "fsGroup": _USER,
        # Shared storage is large: check the group of its root only, instead of changing every file at each start.
        "fsGroupChangePolicy": "OnRootMismatch",
        "seccompProfile": {"type": "RuntimeDefault"},
    }


def container_security() -> Manifest:
    """Build the security context of a container. It writes to its volumes only."""
    return {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}}


def fault_tolerance(options: DeploymentOptions) -> Manifest:
    """Build the options that keep the head's state in Redis."""
    password = {"valueFrom": {"secretKeyRef": {"name": options.redis_secret, "key": "password"}}}
    return {"redisAddress": options.redis_address, "redisPassword": password}
