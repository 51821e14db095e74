"""Rules of KubeRay's operator beyond its schemas.

Source: ray-operator/controllers/ray/utils/validation.go, v1.7.0.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any
from zoneinfo import ZoneInfo

Manifest = dict[str, Any]

_MAX_NAME = {"RayCluster": 53, "RayJob": 47, "RayService": 47, "RayCronJob": 36}
_DNS_LABEL = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
_LABEL_KEY = re.compile(r"([a-z0-9]([-a-z0-9.]*[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?")
_LABEL_VALUE = re.compile(r"([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?")
_RAY_RESOURCES = ("num-cpus", "num-gpus", "memory", "resources")


def violations(manifest: Manifest) -> list[str]:
    """Return the violations of a manifest of one of the operator's four kinds."""
    kind, spec = manifest["kind"], manifest["spec"]
    found = list(_of_metadata(kind, manifest["metadata"]))
    match kind:
        case "RayCluster":
            found += _of_cluster(spec)
        case "RayJob":
            found += _of_job(spec)
        case "RayService":
            found += _of_cluster(spec["rayClusterConfig"])
            if spec["rayClusterConfig"]["headGroupSpec"].get("headService"):
                found.append("headService must not be set in a RayService")
        case "RayCronJob":
            found += _of_cron_job(spec)
    return found


def _of_metadata(kind: str, metadata: Manifest) -> Iterator[str]:
    if len(metadata["name"]) > _MAX_NAME[kind]:
        yield f"name has more than {_MAX_NAME[kind]} characters"
    if not _DNS_LABEL.fullmatch(metadata["name"]):
        yield "name is not a DNS-1035 label"


def _of_job(spec: Manifest) -> Iterator[str]:
    if spec.get("suspend") and not spec.get("shutdownAfterJobFinishes"):
        yield "suspend without shutdownAfterJobFinishes"
    if spec.get("ttlSecondsAfterFinished", 0) and not spec.get("shutdownAfterJobFinishes"):
        yield "ttlSecondsAfterFinished without shutdownAfterJobFinishes"
    if spec.get("backoffLimit", 0) < 0 or spec.get("ttlSecondsAfterFinished", 0) < 0:
        yield "a negative limit"
    if "rayClusterSpec" not in spec:
        yield "neither rayClusterSpec nor clusterSelector"
        return
    yield from _of_cluster(spec["rayClusterSpec"])


def _of_cron_job(spec: Manifest) -> Iterator[str]:
    if "TZ" in spec["schedule"]:
        yield "a time zone in the schedule"
    if len(spec["schedule"].split()) != 5:
        yield "schedule has not five fields"
    ZoneInfo(spec["timeZone"])
    yield from _of_job(spec["jobTemplate"])


def _of_cluster(spec: Manifest) -> Iterator[str]:
    head, workers = spec["headGroupSpec"], spec.get("workerGroupSpecs", [])
    autoscales = spec.get("enableInTreeAutoscaling", False)
    is_v2 = autoscales and spec.get("autoscalerOptions", {}).get("version") == "v2"
    for name, group in (("head", head), *((group["groupName"], group) for group in workers)):
        pod, start = group["template"]["spec"], group.get("rayStartParams", {})
        if not _DNS_LABEL.fullmatch(name):
            yield f"{name}: not valid as part of a pod name"
        if not pod["containers"]:
            yield f"{name}: no container"
        if group.get("resources") and any(start.get(key) for key in _RAY_RESOURCES):
            yield f"{name}: resources in both rayStartParams and resources"
        if "labels" in start:
            yield f"{name}: labels inside rayStartParams"
        for key, value in group.get("labels", {}).items():
            if not _LABEL_KEY.fullmatch(key) or not _LABEL_VALUE.fullmatch(value):
                yield f"{name}: malformed label {key}={value}"
        if is_v2 and pod.get("restartPolicy", "Never") != "Never":
            yield f"{name}: restartPolicy other than Never with autoscaler v2"
        if autoscales and group.get("suspend"):
            yield f"{name}: suspend with the autoscaler"
    for group in workers:
        smallest, largest = group.get("minReplicas"), group.get("maxReplicas")
        if not autoscales and (smallest is None or largest is None):
            yield f"{group['groupName']}: minReplicas and maxReplicas are required without the autoscaler"
        elif smallest < 0 or smallest > largest or not smallest <= group["replicas"] <= largest:
            yield f"{group['groupName']}: replicas are not between minReplicas and maxReplicas"
    names = {variable["name"] for variable in head["template"]["spec"]["containers"][0].get("env", [])}
    if "RAY_enable_autoscaler_v2" in names and "version" in spec.get("autoscalerOptions", {}):
        yield "autoscaler version in both autoscalerOptions and the environment"
    yield from (
        f"{name} in the head's environment"
        for name in ("RAY_REDIS_ADDRESS", "REDIS_PASSWORD", "REDIS_USERNAME")
        if name in names
    )
    if spec.get("authOptions", {}).get("mode") == "token" and tuple(
        map(int, spec.get("rayVersion", "0.0").split(".")[:2])
    ) < (2, 52):
        yield "token authentication needs rayVersion 2.52 or later"
