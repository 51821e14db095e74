"""Access to rendered pods: network policies, security contexts, read-only root file systems, and images by digest."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from pipelines.kubernetes.options import DeploymentOptions
from rlad.errors import ConfigError, PlanError

from .rendering import Manifest, manifests, rendered

CONFIG = "qwen3_0.6b_kk_2k.yaml"
DIGEST = "registry.example/rlad@sha256:" + "0a" * 32


@pytest.fixture(scope="module")
def found() -> dict[str, Manifest]:
    return manifests(rendered(CONFIG))


def pod_templates(value: Any, kind: str = "") -> Iterator[tuple[str, Manifest]]:
    """Yield every pod template in a manifest with the key that holds it."""
    if isinstance(value, dict):
        for key, inner in value.items():
            if key in ("template", "submitterPodTemplate") and "containers" in inner.get("spec", {}):
                yield key, inner
            yield from pod_templates(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from pod_templates(inner)


def is_allowed(policy: Manifest, source: dict[str, str], port: int, *, same_namespace: bool = True) -> bool:
    """Return whether a policy lets a pod with these labels connect to a port of the selected pods."""

    def selects(peer: Manifest) -> bool:
        labels = peer["podSelector"]["matchLabels"]
        in_reach = same_namespace or peer.get("namespaceSelector") == {}
        return in_reach and all(source.get(key) == value for key, value in labels.items())

    return any(
        any(map(selects, rule["from"])) and ("ports" not in rule or {"protocol": "TCP", "port": port} in rule["ports"])
        for rule in policy["spec"]["ingress"]
    )


def test_ports_of_ray_are_open_to_the_clusters_own_pods_and_the_submitter_only(found: dict[str, Manifest]) -> None:
    policy = found["NetworkPolicy"]
    templates = dict(pod_templates(found["RayJob"]))
    node, submitter = (templates[key]["metadata"]["labels"] for key in ("template", "submitterPodTemplate"))
    assert policy["spec"]["policyTypes"] == ["Ingress"]
    assert policy["spec"]["podSelector"]["matchLabels"].items() <= node.items()
    assert not policy["spec"]["podSelector"]["matchLabels"].items() <= submitter.items()
    for port in (6379, 8265, 10001, 8000, 8080, 12345):
        assert is_allowed(policy, node, port)
        assert not is_allowed(policy, node, port, same_namespace=False)
        assert not is_allowed(policy, {}, port)
        assert not is_allowed(policy, {**node, "app.kubernetes.io/instance": "another-run"}, port)
        assert is_allowed(policy, submitter, port) == (port == 8265)
        operator = {"app.kubernetes.io/name": "kuberay-operator"}
        assert is_allowed(policy, operator, port, same_namespace=False) == (port == 8265)
        prometheus = {"app.kubernetes.io/name": "prometheus"}
        assert is_allowed(policy, prometheus, port, same_namespace=False) == (port == 8080)
        client = {"rlad.io/teacher-client": policy["metadata"]["name"]}
        assert is_allowed(policy, client, port) == (port == 8000)


def test_policy_selects_the_pods_of_every_kind(found: dict[str, Manifest]) -> None:
    selected = found["NetworkPolicy"]["spec"]["podSelector"]["matchLabels"].items()
    for kind in ("RayJob", "RayCluster", "RayCronJob", "RayService"):
        nodes = [template for key, template in pod_templates(found[kind]) if key == "template"]
        assert nodes
        assert all(selected <= template["metadata"]["labels"].items() for template in nodes)
    (submitter,) = (template for _, template in pod_templates(found["CronJob"]))
    assert is_allowed(found["NetworkPolicy"], submitter["metadata"]["labels"], 8265)


@pytest.mark.parametrize("kind", ["RayJob", "RayCluster", "RayCronJob", "RayService", "CronJob"])
def test_every_container_runs_without_rights_and_writes_to_its_volumes_only(
    found: dict[str, Manifest], kind: str
) -> None:
    templates = [template["spec"] for _, template in pod_templates(found[kind])]
    assert templates
    for pod in templates:
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        for container in pod["containers"]:
            require_closed(container)
            mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
            assert volumes[mounts["/tmp"]]["emptyDir"] == volumes[mounts["/home/rlad"]]["emptyDir"] == {}
            assert set(mounts.values()) <= volumes.keys()


def test_sidecar_of_the_autoscaler_runs_without_rights(found: dict[str, Manifest]) -> None:
    cluster = found["RayCluster"]["spec"]
    sidecar = cluster["autoscalerOptions"]
    require_closed(sidecar)
    volumes = {volume["name"] for volume in cluster["headGroupSpec"]["template"]["spec"]["volumes"]}
    assert {mount["name"] for mount in sidecar["volumeMounts"]} <= volumes


def require_closed(container: Manifest) -> None:
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }


def test_image_is_named_by_a_digest_or_a_version() -> None:
    assert DeploymentOptions(image=DIGEST).is_image_pinned
    assert not DeploymentOptions(image="registry.example:5000/rlad:1").is_image_pinned
    for image in ("rlad", "registry.example:5000/rlad", "rlad:latest", DIGEST[:-1], "rlad@sha512:00"):
        with pytest.raises(PlanError, match="--image requires"):
            DeploymentOptions(image=image)


def test_option_with_a_secret_is_refused() -> None:
    with pytest.raises(ConfigError, match="a URL with credentials"):
        DeploymentOptions(image=DIGEST, redis_address="redis://:hunter2@redis:6379")
