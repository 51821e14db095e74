"""The checks that test_manifests.py relies on refuse invalid manifests, so that its tests can fail."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest

from .custom_resources import problems
from .operator_rules import violations
from .rendering import Manifest, manifests, rendered

# A cluster would refuse each of these manifests.
BREAK: list[tuple[Callable[[Manifest], Any], str]] = [
    (lambda job: job["spec"]["rayClusterSpec"].update(rayVersions="2.60.0"), "rayVersions"),
    (lambda job: job["spec"]["rayClusterSpec"]["workerGroupSpecs"][0].update(replicas="4"), "is not of type 'integer'"),
    (
        lambda job: job["spec"]["rayClusterSpec"]["workerGroupSpecs"][0].pop("maxReplicas"),
        "'maxReplicas' is a required property",
    ),
    (lambda job: job["spec"]["rayClusterSpec"]["authOptions"].update(mode="tokens"), "'tokens' is not one of"),
    (lambda job: _head(job)["containers"][0]["env"].append({"name": "HF_HOME", "value": "/"}), "is duplicated"),
    (lambda job: _head(job)["containers"][0].update(resource={}), "resource"),
    (
        lambda job: _head(job)["containers"][0]["resources"]["limits"].update(cpu=0.5),
        "is not valid under any of the given schemas",
    ),
    (lambda job: job.pop("spec"), "'spec' is a required property"),
    (lambda job: job.update(apiVersion="ray.io/v1alpha1"), "'ray.io/v1' was expected"),
]


def _head(job: Manifest) -> Manifest:
    pod: Manifest = job["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]
    return pod


@pytest.fixture(scope="module")
def job() -> Manifest:
    return manifests(rendered("smoke_cpu.yaml", kind="rayjob"))["RayJob"]


@pytest.mark.parametrize(("mutate", "problem"), BREAK, ids=[problem for _, problem in BREAK])
def test_schema_refuses_invalid_manifest(
    schemas: dict[str, Any], job: Manifest, mutate: Callable[[Manifest], Any], problem: str
) -> None:
    broken = copy.deepcopy(job)
    mutate(broken)
    assert any(problem in found for found in problems(schemas["RayJob"], broken)), problems(schemas["RayJob"], broken)


def _worker(job: Manifest) -> Manifest:
    group: Manifest = job["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]
    return group


RULES: list[tuple[Callable[[Manifest], Any], str]] = [
    (lambda job: job["metadata"].update(name="a" * 48), "more than 47"),
    (lambda job: job["metadata"].update(name="0run"), "DNS-1035"),
    (
        lambda job: job["spec"].update(suspend=True, shutdownAfterJobFinishes=False),
        "suspend without shutdownAfterJobFinishes",
    ),
    (
        lambda job: job["spec"]["rayClusterSpec"]["headGroupSpec"]["rayStartParams"].update({"num-cpus": "0"}),
        "resources in both",
    ),
    (lambda job: _worker(job)["rayStartParams"].update(labels="rlad.io/pool=rollout"), "labels inside rayStartParams"),
    (lambda job: _worker(job)["labels"].update({"rlad.io/pool": "a b"}), "malformed label"),
    (lambda job: _worker(job)["template"]["spec"].update(restartPolicy="Always"), "restartPolicy other than Never"),
    (lambda job: _worker(job).update(groupName="reward_math"), "not valid as part of a pod name"),
    (lambda job: _worker(job).update(minReplicas=2), "not between minReplicas and maxReplicas"),
    (lambda job: _worker(job).update(suspend=True), "suspend with the autoscaler"),
    (
        lambda job: _head(job)["containers"][0]["env"].append({"name": "RAY_enable_autoscaler_v2", "value": "1"}),
        "autoscaler version in both",
    ),
    (
        lambda job: _head(job)["containers"][0]["env"].append({"name": "REDIS_PASSWORD", "value": "x"}),
        "REDIS_PASSWORD in the head",
    ),
    (lambda job: job["spec"]["rayClusterSpec"].pop("rayVersion"), "token authentication needs rayVersion"),
    (
        lambda job: _head(job).update(containers=[{}]) or _worker(job)["template"]["spec"].update(containers=[]),
        "no container",
    ),
]


@pytest.mark.parametrize(("mutate", "problem"), RULES, ids=[problem for _, problem in RULES])
def test_operator_rules_refuse_invalid_manifest(job: Manifest, mutate: Callable[[Manifest], Any], problem: str) -> None:
    broken = copy.deepcopy(job)
    mutate(broken)
    assert any(problem in found for found in violations(broken)), violations(broken)
